"""The page's style and script, which are part of it: the page loads nothing."""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --text: #1c1f24; --soft: #5b6470; --rule: #dfe2e6;
  --kept: #1f6feb; --again: #e0a03a; --recovery: #b5462f; --lost: #8f98a3; --link: #0b57b8;
  --good: #17713a; --bad: #b3261e; --wait: #8a5300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1c1f25; --text: #e7e9ec; --soft: #a3acb8; --rule: #343a43;
    --kept: #5aa2ff; --again: #d99a2b; --recovery: #ff8a6b; --lost: #78828f; --link: #8ab8ff;
    --good: #6fd08c; --bad: #ff8f87; --wait: #f0b45a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main, header { max-width: 1680px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 12px; }
p { margin: 6px 0; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 8px; top: 8px; background: var(--card); padding: 6px 10px; }
.about { color: var(--soft); overflow-wrap: anywhere; }
.state { display: inline-block; border: 1px solid; border-radius: 99px; padding: 0 10px;
  font-size: .85rem; font-weight: 600; margin-left: 8px; vertical-align: middle; }
.state.good { color: var(--good); } .state.bad { color: var(--bad); }
.state.wait { color: var(--wait); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin: 18px 0; padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 12px; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 16px 18px; margin: 0 0 16px; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .85rem; }
.chart { display: block; overflow: visible; font-size: 12px; margin: 4px 0 0 60px;
  width: calc(100% - 76px); }
.chart.tree { margin-left: 124px; width: calc(100% - 140px); }
.chart text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .tick { text-anchor: middle; } .chart .level { text-anchor: end; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke: var(--kept); stroke-width: 1.8; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.dot { fill: var(--kept); } .spot { fill: var(--recovery); opacity: .5; }
.before { fill: none; stroke: var(--recovery); stroke-width: 4.5; opacity: .38;
  vector-effect: non-scaling-stroke; }
.scaled { display: none; } .scaled.first { display: inline; }
@supports selector(:has(*)) {
  figure:has(.scales) .scaled { display: none; }
  figure:has(#scale-usual:checked) .usual, figure:has(#scale-whole:checked) .whole,
  figure:has(#scale-log:checked) .log { display: inline; }
}
.scales { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: .85rem; }
.scales label { white-space: nowrap; }
.scales input { margin: 0 5px 0 0; accent-color: var(--kept); vertical-align: -1px; }
.replay { fill: var(--again); fill-opacity: .28; }
.fault { stroke: var(--recovery); stroke-width: 1.5; stroke-dasharray: 4 3; }
.mark rect { fill: var(--recovery); } .mark.narrow { display: none; }
.mark text { fill: var(--card); text-anchor: middle; font-size: 10px; font-weight: 700; }
.cursor { stroke: var(--text); stroke-width: 1; visibility: hidden; }
rect.kept { fill: var(--kept); } rect.again { fill: var(--again); }
rect.silent { fill: var(--lost); fill-opacity: .45; }
rect.recovery { fill: var(--recovery); stroke: var(--recovery); stroke-width: 1.5; }
.save { stroke: var(--kept); stroke-width: 2; } .save.gone { opacity: .3; }
.branch { stroke-width: 3; } .branch.kept { stroke: var(--kept); }
.branch.lost { stroke: var(--lost); stroke-dasharray: 5 4; }
.saved { stroke: var(--card); stroke-width: 1.5; }
.saved.kept { fill: var(--kept); } .saved.lost { fill: var(--lost); }
.saved.source { stroke: var(--text); stroke-width: 2; }
.saved.gone { opacity: .35; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0;
  margin: 8px 0 12px; color: var(--soft); font-size: .85rem; }
.swatch { display: inline-block; width: 14px; height: 10px; margin-right: 6px; border-radius: 2px; }
.swatch.line, .swatch.kept { background: var(--kept); }
.swatch.line { height: 3px; vertical-align: middle; }
.swatch.before { height: 5px; background: var(--recovery); opacity: .38; vertical-align: middle; }
.swatch.replay { background: var(--again); opacity: .45; }
.swatch.again { background: var(--again); }
.swatch.silent { background: var(--lost); opacity: .45; }
.swatch.recovery { background: var(--recovery); }
.swatch.fault { width: 0; border-left: 2px dashed var(--recovery); height: 12px; border-radius: 0; }
.swatch.lost { background: none; border-top: 3px dashed var(--lost); height: 3px;
  vertical-align: middle; border-radius: 0; }
.swatch.save { width: 3px; background: var(--kept); }
.swatch.source, .swatch.gone { width: 11px; height: 11px; border-radius: 50%; vertical-align: -1px;
  background: var(--kept); }
.swatch.source { border: 2px solid var(--text); } .swatch.gone { opacity: .35; }
.readout { display: flex; flex-wrap: wrap; gap: 12px; align-items: center; font-size: .9rem;
  color: var(--soft); }
.readout[hidden] { display: none; }
.readout label { flex: 0 1 320px; display: flex; gap: 8px; align-items: center; }
.readout input { flex: 1; min-width: 80px; accent-color: var(--kept); }
#figures table { max-width: 760px; }
.scrolls { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
.dense td, .dense th, tbody th:not(:nth-last-child(2)) { white-space: nowrap; }
thead th { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tr:target { background: color-mix(in srgb, var(--again) 22%, transparent); }
summary { cursor: pointer; color: var(--link); padding: 4px 0; }
footer { color: var(--soft); font-size: .85rem; padding: 4px 0 28px; }
@media (max-width: 620px) {
  main, header { padding-left: 12px; padding-right: 12px; }
  section { padding: 12px; }
  .spare, .mark.wide { display: none; } .mark.narrow { display: inline; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td, tbody th { display: block; }
  tr { border: 1px solid var(--rule); border-radius: 6px; padding: 4px 10px; margin: 0 0 8px; }
  .dense tr { display: grid; grid-template-columns: 1fr 1fr; grid-auto-flow: dense; gap: 0 20px; }
  .dense .broad { grid-column: 1 / -1; }
  .dense tbody th { grid-column: 1 / -1; font-weight: 600; justify-content: start; }
  td, tbody th, .number { display: flex; gap: 10px; border: 0; padding: 1px 0; text-align: right;
    justify-content: space-between; white-space: normal; overflow-wrap: anywhere; }
  .dense td, .dense th, tbody th:not(:nth-last-child(2)) { white-space: normal; }
  td::before, tbody th::before { content: attr(data-head); color: var(--soft); font-weight: 400;
    text-align: left; flex: none; max-width: 60%; }
  .chart { margin-left: 56px; width: calc(100% - 66px); }
  .chart.tree { margin-left: 116px; width: calc(100% - 126px); }
}
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --text: #000; --soft: #444;
    --rule: #ccc; --kept: #1f6feb; --again: #e0a03a; --recovery: #b5462f; --lost: #777;
    --link: #000; --good: #000; --bad: #000; --wait: #000; }
  figure > svg, .tiles div, tr { break-inside: avoid; }
  .scrolls { overflow: visible; }
  table { font-size: 8pt; }
  .dense td, .dense th, tbody th:not(:nth-last-child(2)) { white-space: normal; }
  th, td { padding-right: 8px; }
  .readout, .skip { display: none !important; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT: Final = """
(() => {
  const readout = document.querySelector('.readout');
  if (!readout) return;
  const points = JSON.parse(readout.dataset.points);
  const chart = document.querySelector('svg.loss');
  const cursor = chart.querySelector('.cursor');
  const input = readout.querySelector('input');
  const output = readout.querySelector('output');
  const show = (index) => {
    const [step, loss, place] = points[index];
    input.value = index;
    input.setAttribute('aria-valuetext', `step ${step}, loss ${loss}`);
    output.textContent = `step ${step}: loss ${loss}`;
    cursor.setAttribute('x1', `${place}%`);
    cursor.setAttribute('x2', `${place}%`);
    cursor.style.visibility = 'visible';
  };
  input.addEventListener('input', () => show(Number(input.value)));
  chart.addEventListener('pointermove', (event) => {
    const box = chart.getBoundingClientRect();
    const wanted = (event.clientX - box.left) / box.width * 100;
    let nearest = 0;
    points.forEach((point, index) => {
      if (Math.abs(point[2] - wanted) < Math.abs(points[nearest][2] - wanted)) nearest = index;
    });
    show(nearest);
  });
  output.textContent = 'point at the curve, or use the arrow keys here';
  readout.hidden = false;
})();
"""
