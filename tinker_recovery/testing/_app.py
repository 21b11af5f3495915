"""The service's HTTP routes, as the SDK expects them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tinker_recovery.testing._auth import SIGNED, Auth
from tinker_recovery.testing._control_routes import ControlRoutes, is_local
from tinker_recovery.testing._export_routes import ExportRoutes
from tinker_recovery.testing._losses import OFFERED
from tinker_recovery.testing._model import Adam
from tinker_recovery.testing._options import ServerOptions
from tinker_recovery.testing._organization_routes import OrganizationRoutes
from tinker_recovery.testing._protobuf import MEDIA_TYPE, read_batch, read_request, write_output
from tinker_recovery.testing._rest_routes import RestRoutes, check_ttl, kept_metadata
from tinker_recovery.testing._runs import RequestError, ServiceError, ServiceRun, session_of
from tinker_recovery.testing._sampler_routes import SamplerRoutes
from tinker_recovery.testing._service_state import ServiceState
from tinker_recovery.testing._wire_faults import WireFaults

Handler = Callable[[Request], Awaitable[Response]]


def _check_control(path: str, request: Request) -> None:
    host = request.client.host if request.client else ""
    if path.startswith("/testing/") and not is_local(host):
        raise ServiceError(403, "faults are injected from the server's own machine")


class TinkerApp:
    """All routes; those for sessions and training are handled here."""

    def __init__(
        self,
        state: ServiceState,
        auth: Auth,
        wire: WireFaults,
        control: ControlRoutes,
        options: ServerOptions,
    ) -> None:
        self._state = state
        self._auth = auth
        self._wire = wire
        self._control = control
        self._rest = RestRoutes(state, sizes=options.sizes)
        self._exports = ExportRoutes(state)
        self._samplers = SamplerRoutes(state, options)
        self._organization = OrganizationRoutes(state)
        self._options = options

    def starlette(self) -> Starlette:
        """The ASGI application."""
        api = "/api/v1"
        run = api + "/training_runs/{run}"
        checkpoint = run + "/checkpoints/{kind}/{name}"
        rest, control, exports = self._rest, self._control, self._exports
        samplers, organization = self._samplers, self._organization
        routes: list[tuple[str, str, Handler]] = [
            ("GET", api + "/healthz", self._health),
            ("GET", api + "/get_server_capabilities", self._capabilities),
            ("POST", api + "/client/config", self._config),
            ("POST", api + "/client/dynamic_config", self._dynamic_config),
            ("POST", api + "/auth/token", self._token),
            ("POST", api + "/telemetry", self._telemetry),
            ("POST", api + "/create_session", self._create_session),
            ("POST", api + "/session_heartbeat", self._session_heartbeat),
            ("POST", api + "/sessions/search", rest.search_sessions),
            ("GET", api + "/sessions", rest.sessions),
            ("GET", api + "/sessions/{session}", rest.session),
            ("POST", api + "/sessions/{session}/finish", self._finish),
            ("POST", api + "/create_model", self._create_model),
            ("POST", api + "/load_weights", self._load_weights),
            ("POST", api + "/get_info", self._get_info),
            ("POST", api + "/forward_backward", self._forward_backward),
            ("POST", api + "/optim_step", self._optim_step),
            ("POST", api + "/save_weights", self._save_weights),
            ("POST", api + "/save_weights_external", exports.save_weights_external),
            ("POST", api + "/save_weights_for_sampler", samplers.save_weights_for_sampler),
            ("POST", api + "/create_sampling_session", samplers.create_sampling_session),
            ("POST", api + "/join_sampling_session", samplers.join_sampling_session),
            ("GET", api + "/samplers/{sampler}", samplers.sampler),
            ("POST", api + "/asample", samplers.asample),
            ("POST", api + "/retrieve_future", self._retrieve_future),
            ("POST", api + "/retrieve_futures", samplers.retrieve_futures),
            ("POST", api + "/cancel_future", self._cancel_future),
            ("POST", api + "/copy_weights", organization.copy_weights),
            ("PUT", api + "/sessions/{session}/project", organization.session_project),
            ("GET", api + "/audit", organization.audit),
            ("GET", api + "/billing/usage/events", organization.billing_usage),
            ("GET", api + "/billing/usage/checkpoints/current", organization.storage_usage),
            ("POST", api + "/weights_info", rest.weights_info),
            ("GET", api + "/training_runs", rest.training_runs),
            ("GET", run, rest.training_run),
            ("GET", run + "/checkpoints", rest.run_checkpoints),
            ("GET", api + "/checkpoints", rest.checkpoints),
            ("DELETE", checkpoint, rest.delete),
            ("PUT", checkpoint + "/ttl", rest.set_ttl),
            ("POST", checkpoint + "/publish", rest.publish),
            ("DELETE", checkpoint + "/publish", rest.unpublish),
            ("GET", checkpoint + "/external_weights_urls", exports.external_weights_urls),
            ("GET", SIGNED + "/{run}/{name}/{file}", exports.download),
            ("GET", "/testing/faults", control.fired),
            ("POST", "/testing/faults", control.inject),
            ("POST", "/testing/release", control.release),
            ("POST", "/testing/outage", control.outage),
            ("DELETE", "/testing/outage", control.end_outage),
            ("POST", "/testing/sessions/{session}/fail", control.fail_session),
            ("POST", "/testing/runs", control.add_runs),
            ("POST", "/testing/runs/corrupt", control.corrupt),
            ("GET", "/testing/runs/{run}/state", control.state),
            ("DELETE", "/testing/samplers/{sampler}", control.expire_sampler),
            ("GET", "/testing/stats", control.stats),
        ]
        return Starlette(
            routes=[
                Route(path, self._guarded(handler, path), methods=[method])
                for method, path, handler in routes
            ]
        )

    def _guarded(self, handler: Handler, path: str) -> Handler:
        name = handler.__name__.removeprefix("_")
        can_fail = path.startswith(("/api/", SIGNED))

        async def serve(request: Request) -> Response:
            self._state.requests[name] += 1
            try:
                if can_fail:
                    return await self._wire.answer(name, request, answer)
                return await answer(request)
            except asyncio.CancelledError:
                # Requests are cancelled only at the server's end; uvicorn would log a failure.
                return JSONResponse({"detail": "the server is stopping"}, 503)

        async def answer(request: Request) -> Response:
            try:
                _check_control(path, request)
                self._auth.check(request)
                self._check_offered(name)
                return await handler(request)
            except ServiceError as error:
                headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
                stale = self._auth.jwt and error.status == 401  # noqa: PLR2004 - Unauthorized
                return JSONResponse(
                    {"detail": error.message}, error.status, headers=headers if stale else None
                )
            except (KeyError, TypeError, ValueError) as error:
                return JSONResponse({"detail": f"malformed request: {error!r}"}, 422)

        return serve

    def _check_offered(self, route: str) -> None:
        if route in self._options.missing:
            raise ServiceError(404, "Not Found")

    # Service and sessions

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _capabilities(self, _: Request) -> Response:
        model = {"model_name": "Qwen/Qwen3-8B", "trainable": True, "sampleable": True}
        return JSONResponse({"supported_models": [model]})

    async def _config(self, _: Request) -> Response:
        return JSONResponse({"pjwt_auth_enabled": self._auth.jwt, **self._options.flags})

    async def _dynamic_config(self, _: Request) -> Response:
        return JSONResponse({"refresh_interval_sec": 60, **self._options.flags})

    async def _token(self, _: Request) -> Response:
        return JSONResponse({"jwt": self._auth.token()})

    async def _telemetry(self, _: Request) -> Response:
        return JSONResponse({"status": "accepted"})

    async def _create_session(self, request: Request) -> Response:
        body = await request.json()
        session = self._state.sessions.create(
            body.get("user_metadata"), body.get("display_name"), project=body.get("project_id")
        )
        return JSONResponse({"session_id": session, "type": "create_session"})

    async def _session_heartbeat(self, request: Request) -> Response:
        self._state.sessions.beat((await request.json())["session_id"])
        return JSONResponse({"type": "session_heartbeat"})

    async def _finish(self, request: Request) -> Response:
        body = await request.json()
        session = request.path_params["session"]
        self._state.sessions.finish(session, body["reason"]["type"], body.get("detail"))
        return JSONResponse({})

    # Training

    async def _create_model(self, request: Request) -> Response:
        body = await request.json()
        lora = body.get("lora_config") or {}
        seed = lora.get("seed")
        return _accepted(
            self._state.create_run(
                body["session_id"],
                body["model_seq_id"],
                base_model=body["base_model"],
                rank=int(lora.get("rank", 32)),
                seed=secrets.randbelow(2**31) if seed is None else int(seed),
                user_metadata=body.get("user_metadata"),
            )
        )

    async def _load_weights(self, request: Request) -> Response:
        body = await request.json()
        if body.get("session_id") is None:
            raise ServiceError(400, "weights are loaded as a run's first request only")
        return _accepted(
            self._state.load_run(
                body["session_id"],
                body["model_seq_id"],
                path=body["path"],
                optimizer=bool(body["optimizer"]),
                user_metadata=body.get("user_metadata"),
            )
        )

    async def _get_info(self, request: Request) -> Response:
        run = self._state.run((await request.json())["model_id"])
        self._state.sessions.check_not_ended(run.session)
        data = {
            "arch": "bigram-lora",
            "model_name": run.facts["base_model"],
            "tokenizer_id": run.facts["base_model"],
        }
        return JSONResponse(
            {
                "type": "get_info",
                "model_id": run.run_id,
                "model_data": data,
                "is_lora": True,
                "lora_rank": run.facts["rank"],
                "model_name": run.facts["base_model"],
            }
        )

    async def _forward_backward(self, request: Request) -> Response:
        encoding = request.headers.get("content-encoding")
        try:
            body = read_request(await request.body(), encoding)
        except ValueError as error:
            raise ServiceError(400, str(error)) from error

        def execute(run: ServiceRun) -> bytes:
            if body.loss_fn not in OFFERED:
                allowed = ", ".join(OFFERED)
                raise RequestError(f"loss_fn={body.loss_fn!r} is not offered: {allowed}")
            try:
                batch = read_batch(
                    body,
                    weights_required=self._options.weights_required,
                    vocabulary=self._options.vocabulary,
                )
            except ValueError as error:
                raise RequestError(str(error)) from error
            tokens = sum(len(datum.tokens) for datum in batch)
            self._state.ledger.count("training", run.session, run.facts["base_model"], tokens)
            return write_output(*run.loaded().forward(batch, backward=not body.forward_only))

        return _accepted(
            self._state.submit(body.model_id, body.seq_id, "forward_backward", execute)
        )

    async def _optim_step(self, request: Request) -> Response:
        body = await request.json()
        if "adam_params" not in body:
            raise ServiceError(400, "only Adam is offered")
        adam = Adam(**body["adam_params"])

        def execute(run: ServiceRun) -> dict[str, Any]:
            run.loaded().step(adam)
            return {"metrics": {}}

        return _accepted(
            self._state.submit(body["model_id"], body["seq_id"], "optim_step", execute)
        )

    async def _save_weights(self, request: Request) -> Response:
        body = await request.json()
        run = self._state.run(body["model_id"])
        name = body.get("path") or f"checkpoint-{body['seq_id']}"
        ttl_s = body.get("ttl_seconds")
        check_ttl(ttl_s)
        given, seq_id = body.get("user_metadata"), int(body["seq_id"])
        metadata = kept_metadata(self._options.metadata, run, seq_id, given)

        def execute(run: ServiceRun) -> dict[str, Any]:
            path = self._state.checkpoints.save(
                run.run_id, name, run.loaded(), ttl_s=ttl_s, user_metadata=metadata
            )
            self._state.ledger.count("checkpoint", run.session, run.facts["base_model"], 1)
            return {"path": path, "type": "save_weights"}

        overwrite = bool(body.get("overwrite", False))
        return _accepted(
            self._state.submit_save(run, body["seq_id"], name, execute, overwrite=overwrite)
        )

    async def _retrieve_future(self, request: Request) -> Response:
        request_id = (await request.json())["request_id"]
        promise = self._state.promise(request_id)
        session = session_of(promise.run_id)
        self._state.sessions.check_not_ended(session)
        await promise.wait_changed(self._options.long_poll_s)
        self._state.sessions.check_not_ended(session)
        if promise.reply is None:
            state = promise.queue_state
            return JSONResponse(
                {"type": "try_again", "request_id": request_id, "queue_state": state}
            )
        if promise.gone:
            raise ServiceError(410, f"the result of {request_id} is gone")
        if isinstance(promise.reply, bytes):
            return Response(promise.reply, media_type=MEDIA_TYPE)
        return JSONResponse(promise.reply)

    async def _cancel_future(self, request: Request) -> Response:
        """Stop a sampling request that its client has abandoned; without effect if it is done."""
        request_id = (await request.json())["request_id"]
        promise = self._state.promise(request_id)
        if promise.request != "asample":
            raise ServiceError(400, f"only sampling can be cancelled, not {promise.request}")
        promise.fail(f"{request_id} was cancelled by its client", "user")
        return JSONResponse({})


def _accepted(request_id: str) -> Response:
    return JSONResponse({"request_id": request_id})
