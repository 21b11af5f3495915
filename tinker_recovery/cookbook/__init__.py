"""Recipes of the tinker-cookbook, unchanged, in supervised attempts.

- ``recipes``: the recipes it knows, and what is particular about each
- ``clients``: what a recipe gets for ``tinker.ServiceClient`` inside an attempt
- ``log_dir``: the recipe's own records of where it stands
- ``runner``: the run

Called by the Supervisor and the command line. The cookbook is imported when a recipe is run, never
before. It never imports ``detection`` or ``recovery``.
"""
