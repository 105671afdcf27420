"""The page: its layout in Gradio, and the app that serves it.

The picture and the answers are components of our own (`page.js`, `page.css`). Nothing is fetched
from elsewhere, and nothing that a user does is kept or sent anywhere.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from fastapi import FastAPI
from PIL import Image

from kosmos2_jax.errors import ImageError, Kosmos2Error
from kosmos2_jax.inference.predictor import Predictor
from kosmos2_jax.inference.sampling import SamplingConfig
from kosmos2_jax.serving.demo.desk import Desk, Visit, open_picture
from kosmos2_jax.serving.demo.view import picture
from kosmos2_jax.serving.settings import ServerSettings

_FOLDER = Path(__file__).parent
_AT_ONCE = 16  # questions; each has a thread that waits
_WAITING = 256
_MOST_BOXES = 10

_SCRIPT = f"<script>{(_FOLDER / 'page.js').read_text()}</script>"
_STAGE = """
<div class="k2-stage">
  <label class="k2-drop"><input class="k2-file" type="file" accept="image/*">
    <strong>Choose a picture</strong><span>or drop it here, or paste one</span></label>
  <div class="k2-frame" hidden><div class="k2-area"><img alt="The picture that is asked about"
    draggable="false"><div class="k2-layer k2-found"></div><div class="k2-layer k2-own"></div>
  </div></div>
  <div class="k2-line" hidden><span class="k2-size"></span>
    <button type="button" class="k2-link k2-other">Another picture</button></div>
  <div class="k2-examples"></div>
</div>
"""
_START_STAGE = """
window.kosmos2.stage(element, props, watch, {
  picture: (data) => trigger("picture", data), example: (data) => trigger("example", data),
});
"""
_START_ANSWERS = "window.kosmos2.answers(element, props, watch);"


def make_app(predictor: Predictor, name: str, examples: Sequence[bytes]) -> FastAPI:
    """The ASGI application; the predictor is closed when it shuts down.

    Args:
      predictor: the model.
      name: of the model, for the page's head.
      examples: encoded pictures to choose from.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(predictor.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app,
        make_page(predictor, name, examples),
        path="/",
        css=(_FOLDER / "page.css").read_text(),
        theme=gr.themes.Default(primary_hue="blue", font=("system-ui", "sans-serif")),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=1,  # pictures come with the questions: nothing is stored in files
    )


def make_page(predictor: Predictor, name: str, examples: Sequence[bytes]) -> gr.Blocks:
    """The page; arguments are those of `make_app`."""
    with gr.Blocks(title=f"{name} · kosmos2", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            "<h1>Kosmos-2</h1><p>Describes a picture, finds things in it and answers questions; "
            f"every phrase with its place. Model: {_plain(name)}</p>",
            elem_id="title",
        )
        _Page(Desk(predictor), examples).lay_out(page)
    page.queue(default_concurrency_limit=_AT_ONCE, max_size=_WAITING)
    return page


class _Page:
    """The components, and what happens when they are used."""

    def __init__(self, desk: Desk, examples: Sequence[bytes]) -> None:
        self._desk, self._examples = desk, examples
        self._controls: dict[str, gr.components.Component] = {}

    def lay_out(self, page: gr.Blocks) -> None:
        """Makes the components inside of `page`."""
        self._picture, self._turns = gr.State(None), gr.State(())
        with gr.Row():
            with gr.Column(scale=1, min_width=360):
                self._stage = gr.HTML(
                    elem_id="stage", html_template=_STAGE, js_on_load=_START_STAGE, head=_SCRIPT,
                    apply_default_css=False, examples=[_shown(one) for one in self._examples],
                )  # fmt: skip
                self._box = gr.Textbox(
                    label="Box", elem_id="box", lines=1, max_lines=1,
                    placeholder="left, top, right, bottom, as fractions of the picture",
                )  # fmt: skip
            with gr.Column(scale=1, min_width=360):
                asked = self._tasks()
                self._answers = gr.HTML(
                    [], elem_id="answers", html_template='<div class="k2-answers"></div>',
                    js_on_load=_START_ANSWERS, head=_SCRIPT, apply_default_css=False,
                )  # fmt: skip
                stop = gr.Button("Stop", size="sm", elem_id="stop")
                with gr.Accordion("How to write", open=False, elem_id="settings"):
                    self._settings()
        self._connect(page, asked, stop)

    def _tasks(self) -> list[tuple[Sequence[Callable], Callable[..., Any], list[Any]]]:
        """Tabs; returns the events of each task, what answers it, and its own inputs."""
        has_places = self._desk.predictor.vocabulary.grid_size > 0
        with gr.Tabs(elem_id="tasks"):
            with gr.Tab("Describe"):
                detail = gr.Radio(["Brief", "Detailed"], value="Brief", show_label=False)
                describe = gr.Button("Describe", variant="primary")
            with gr.Tab("Find"):
                phrase = gr.Textbox(label="What to find", placeholder="a snowman", max_lines=1)
                count = gr.Slider(
                    1, _MOST_BOXES, 1, step=1, label="Boxes",
                    info="1: as the model writes it. More: its most likely boxes.",
                )  # fmt: skip
                find = gr.Button("Find", variant="primary")
            with gr.Tab("Box"):
                gr.Markdown("Draw a box on the picture.")
                refer = gr.Button("What is in the box?", variant="primary")
            with gr.Tab("Ask"):
                question = gr.Textbox(
                    label="Question", placeholder="What is special about this image?",
                    info="[Brackets] around words mean the box: What colour is [it]?",
                )  # fmt: skip
                grounded = gr.Checkbox(has_places, label="with the places of things")
                ask = gr.Button("Ask", variant="primary")
            with gr.Tab("Chat"):
                line = gr.Textbox(
                    label="Say", placeholder="And what is beside [it]?",
                    info="What was said before is remembered.",
                )  # fmt: skip
                placed = gr.Checkbox(has_places, label="with the places of things")
                with gr.Row():
                    self._afresh = gr.Button("Start afresh")
                    say = gr.Button("Say", variant="primary")
        desk = self._desk
        return [
            ([describe.click], lambda v, how: desk.describe(v, how == "Detailed"), [detail]),
            ([find.click, phrase.submit], lambda v, what, n: desk.find(v, what, int(n)),
             [phrase, count]),
            ([refer.click, self._box.submit], desk.refer, []),
            ([ask.click, question.submit], desk.ask, [question, grounded]),
            ([say.click, line.submit], desk.chat, [self._turns, line, placed]),
        ]  # fmt: skip

    def _settings(self) -> None:
        """How answers are written: controls by the name of their setting."""
        model = self._desk.predictor
        default, limit = model.model.sampling, ServerSettings.max_new_tokens
        longest = min(limit, model.config.decoder.max_length)
        with gr.Row():
            self._controls = {
                "temperature": gr.Slider(
                    0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest words always"
                ),
                "top_p": gr.Slider(0.01, 1, 1, step=0.01, label="Top-p"),
                "top_k": gr.Slider(0, 200, 0, step=1, label="Top-k", info="0: no such limit"),
                "repetition_penalty": gr.Slider(
                    0.5, 2, 1, step=0.05, label="Repetition penalty", info="1: none"
                ),
                "num_outputs": gr.Slider(
                    1, 8, 1, step=1, label="Outputs", info="of a chat only one"
                ),
                "num_beams": gr.Slider(1, 8, 1, step=1, label="Beams"),
                "max_new_tokens": gr.Slider(
                    1, longest, min(default.max_new_tokens, longest), step=1,
                    label="Longest answer", info="in tokens",
                ),
                "seed": gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
                "grammar": gr.Checkbox(
                    model.vocabulary.grid_size > 0, label="Only well-formed boxes",
                    interactive=model.vocabulary.grid_size > 0,
                ),
            }  # fmt: skip

    def _connect(self, page: gr.Blocks, asked: Sequence[tuple], stop: gr.Button) -> None:
        common = [self._picture, self._box, *self._controls.values()]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        for events, answer, own in asked:
            outputs = [self._answers, self._turns] if self._turns in own else [self._answers]
            gr.on(
                events, self._answering(answer, len(own)), [*own, *common], outputs,
                concurrency_id="model", trigger_mode="multiple", **quiet,
            )  # fmt: skip
        shown = [self._picture, self._stage, self._answers, self._turns]
        self._stage.picture(_told(self._take), None, shown, **quiet)
        self._stage.example(_told(self._take_example), None, shown, **quiet)
        self._afresh.click(self._start_afresh, None, [self._answers, self._turns], **quiet)
        stop.click(self._stop, None, None, queue=False, **quiet)
        page.unload(self._leave)

    def _answering(self, answer: Callable[..., Iterator[Any]], count: int) -> Callable:
        """`answer(visit, *own)` as a listener of Gradio's; `count` is the number of own inputs."""
        names = list(self._controls)

        @_told
        def listen(request: gr.Request, *values: Any) -> Iterator[Any]:
            own, (picture, box, *settings) = values[:count], values[count:]
            sampling = self._sampling(dict(zip(names, settings, strict=True)))
            yield from answer(Visit(request.session_hash, picture, box or "", sampling), *own)

        return listen

    def _sampling(self, settings: dict[str, Any]) -> SamplingConfig:
        default = self._desk.predictor.model.sampling
        whole = {
            field.name: int(settings[field.name] or 0)
            for field in dataclasses.fields(SamplingConfig)
            if field.name in settings and field.type == "int"
        }
        return dataclasses.replace(default, **settings | whole)

    def _take(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple]:
        try:
            encoded = base64.b64decode(event._data["base64"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise ImageError("The picture did not come whole: choose it again.") from None
        yield self._show(encoded, request)

    def _take_example(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple]:
        number = int(event._data["number"]) % len(self._examples)
        yield self._show(self._examples[number], request)

    def _show(self, encoded: bytes, request: gr.Request) -> tuple:
        """Another picture: what is written about the one before is no longer wanted."""
        shown = picture(open_picture(encoded))
        self._desk.leave(request.session_hash)
        return encoded, shown, [], ()

    def _start_afresh(self, request: gr.Request) -> tuple[list, tuple]:
        self._desk.leave(request.session_hash)
        return [], ()

    def _stop(self, request: gr.Request) -> None:
        self._desk.stop(request.session_hash)

    def _leave(self, request: gr.Request) -> None:
        self._desk.leave(request.session_hash)


def _told(listener: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The listener, whose errors that a user can mend are shown on the page."""

    @functools.wraps(listener)
    def listen(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from listener(*args, **kwargs)
        except Kosmos2Error as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from None

    return listen


def _shown(encoded: bytes) -> dict[str, Any]:
    image = open_picture(encoded)
    image.thumbnail((128, 128), Image.Resampling.LANCZOS)
    return picture(image)


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
