"""Forms and file uploads: what the view gets, and what becomes of everything else."""

import asyncio
import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from pydantic import BaseModel, Field, model_validator

from tests.application import container_of, package_of
from tests.serving import NO_BROKER, everything, first_answer, serving
from tests.waiting import eventually
from workerkit import DeclarationError, Form, HTTPView, Runner, UploadFile
from workerkit.http.form_reader import MAX_FILES, MAX_PARTS, MAX_TEXT
from workerkit.http.openapi import document
from workerkit.http.upload import IN_MEMORY, safe_filename
from workerkit.testing.http_client import HTTPClient

MIB = 1024 * 1024
LARGE = b"0123456789abcdef" * (IN_MEMORY // 8)  # Twice of what is kept in memory.
kept: list[UploadFile] = []


class Size(IntEnum):
    LARGE = 3


class Photos(HTTPView):
    """Takes single fields."""

    routes = ["/photos"]
    max_body = 4 * MIB

    async def post(
        self,
        title: Annotated[str, Form],
        photo: Annotated[UploadFile, Form],
        more: Annotated[list[UploadFile] | None, Form] = None,
        tags: Annotated[list[str], Form("tag")] = [],  # noqa: B006
        taken: Annotated[date | None, Form] = None,
        size: Annotated[Size, Form] = Size.LARGE,
        rating: Annotated[int | None, Field(ge=1, le=5), Form] = None,
    ) -> dict[str, Any]:
        """Store a photo."""
        kept.append(photo)
        return {
            "title": title,
            "photo": [photo.filename, photo.content_type, photo.size],
            "start": (await photo.read(4)).decode("latin-1"),
            "rest": sum([len(chunk) async for chunk in photo.chunks()]),
            "more": [(await each.read()).decode() for each in more or []],
            "tags": tags,
            "taken": str(taken),
            "size": size.name,
            "rating": rating,
        }


class Upload(BaseModel):
    """A whole form."""

    name: Annotated[str, Field(min_length=1)]
    count: int = 1
    both: int | str = 0
    ratio: float = 0.5
    items: list[int] = []
    file: UploadFile | None = None

    @model_validator(mode="after")
    def _named(self) -> "Upload":
        if self.name == "refused":
            raise ValueError("this name is refused")
        return self


class Uploads(HTTPView):
    """Takes a model, in a thread."""

    routes = ["/uploads"]

    def post(self, form: Annotated[Upload, Form]) -> dict[str, Any]:
        """Count the lines of a file."""
        rows = 0
        if form.file is not None:
            rows = len(list(csv.reader(io.TextIOWrapper(form.file.file))))
        return {**form.model_dump(exclude={"file"}), "rows": rows}


class Search(HTTPView):
    """Takes no file."""

    routes = ["/search"]

    async def post(
        self, words: Annotated[str | None, Form] = None, page: Annotated[int, Form] = 1
    ) -> list[Any]:
        """Search."""
        return [words, page]


def multipart(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--b--\r\n") -> bytes:
    """Return a body of parts, each with its headers."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + end


def part(name: str, content: bytes, filename: str | None = None, more: str = "") -> bytes:
    """Return one part."""
    file = "" if filename is None else f'; filename="{filename}"'
    return f'Content-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'.encode() + content


PHOTO = part("photo", b"data", "a.png", "Content-Type: image/png\r\n")
TITLE = part("title", b"Tea")
URLENCODED = b"application/x-www-form-urlencoded"
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


HEAD = b"POST /photos HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"


async def send(client: HTTPClient, body: bytes) -> tuple[int, Any]:
    """Return status and body of the answer to a form."""
    answer = await first_answer(client, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_fields_and_files() -> None:
    """Each parameter gets its field; files are read in pieces."""
    form = {
        "title": "Tea",
        "photo": UploadFile(LARGE, "tea.png", "image/png"),
        "more": [UploadFile(b"one", "1"), UploadFile(b"two", "2")],
        "tag": ["a", "b"],
        "taken": "2026-11-30",
        "size": "3",
        "rating": "5",
    }
    async with serving(Photos) as client:
        answer = await client.post("/photos", form=form)

    assert (answer.status, answer.json()) == (
        200,
        {
            "title": "Tea",
            "photo": ["tea.png", "image/png", len(LARGE)],
            "start": "0123",
            "rest": len(LARGE) - 4,
            "more": ["one", "two"],
            "tags": ["a", "b"],
            "taken": "2026-11-30",
            "size": "LARGE",
            "rating": 5,
        },
    )


async def test_a_model() -> None:
    """Its fields are read as those of a query; a blocking library reads the file in a thread."""
    form = {"name": "ä", "count": "2", "both": "7", "items": ["1", "2"], "other": "x"}
    async with serving(Uploads) as client:
        answer = await client.post(
            "/uploads", form={**form, "file": UploadFile(b"1,2\n3,4\n", "a.csv")}
        )

    expected = {"name": "ä", "count": 2, "both": 7, "ratio": 0.5, "items": [1, 2], "rows": 2}
    assert (answer.status, answer.json()) == (200, expected)


async def test_urlencoded() -> None:
    """A form without files may come in both content types, or not at all."""
    async with serving(Search) as client:
        answers = [
            await client.post("/search", form={"words": "a&b é", "page": "2"}),
            await client.post("/search", body=multipart(part("words", b"x")), headers=MULTIPART),
            await client.post("/search"),
        ]

    assert [each.json() for each in answers] == [["a&b é", 2], ["x", 1], [None, 1]]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([PHOTO], ["title"]),
        ([TITLE], ["photo"]),
        ([], ["photo", "title"]),
        ([TITLE, part("photo", b"", "")], ["photo"]),
        ([TITLE, PHOTO, part("taken", b"x")], ["taken"]),
        ([TITLE, PHOTO, part("rating", b"6")], ["rating"]),
        ([TITLE, PHOTO, part("size", b"4")], ["size"]),
        ([PHOTO, part("title", b"data", "a.txt")], ["title"]),
        ([PHOTO, part("title", b"\xff")], ["title"]),
    ],
)
async def test_invalid_fields(parts: list[bytes], names: list[str]) -> None:
    """A 422 names the fields, and no value."""
    async with serving(Photos) as client:
        status, found = await send(client, multipart(*parts))

    assert (status, sorted(each["name"] for each in found["errors"])) == (422, names)
    assert {each["in"] for each in found["errors"]} == {"body"}


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ({"name": "", "count": "x", "both": "x"}, ["count", "name"]),
        ({"name": "refused"}, ["the body"]),
        ({"name": "a", "ratio": "nan"}, ["ratio"]),
        ({"name": "a", "items": ["1", "x"]}, ["items.1"]),
        ({"name": "a", "file": "text"}, []),
    ],
)
async def test_invalid_models(form: dict[str, Any], names: list[str]) -> None:
    """All findings are named, also those of the model's own validators."""
    async with serving(Uploads) as client:
        answer = await client.post("/uploads", form={"file": UploadFile(b"", "a"), **form})
        if "file" in form:
            body = multipart(part("name", b"a"), part("file", b"text"))
            answer = await client.post("/uploads", body=body, headers=MULTIPART)

    found = answer.json().get("errors", [])
    assert answer.status == (422 if names else 200), found
    assert sorted(each["name"] for each in found) == names


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (multipart(*[part("tag", b"x")] * MAX_PARTS), 422),
        (multipart(*[part("tag", b"x")] * (MAX_PARTS + 1)), 413),
        (multipart(TITLE, *[part("more", b"x", "f")] * (MAX_FILES + 1)), 413),
        (multipart(TITLE, PHOTO, part("other", b"x" * MAX_TEXT), part("tag", b"y" * 9)), 413),
        (multipart(TITLE, part("photo", b"x" * 4 * MIB, "f")), 413),
        (b"x" * 5 * MIB, 400),
        (b"x\r\n" * MIB, 400),
        (b"", 400),
        (b"\r\n", 400),
        (b"--b", 400),
        (b"--b--\r\n", 422),
        (multipart(TITLE, PHOTO, end=b""), 400),
        (multipart(TITLE, PHOTO, end=b"--b"), 400),
        (multipart(TITLE, PHOTO, boundary=b"other", end=b""), 400),
        (multipart(b"\r\nno name"), 400),
        (multipart(b"Content-Disposition: attachment\r\n\r\nno name"), 400),
        (multipart(part("title", b"x", None, "X: y\r\n" * 100)), 400),
        (multipart(part("title", b"x", None, f"X: {'y' * 20_000}\r\n")), 400),
        (
            multipart(part("title", b"x", None, "Content-Type: multipart/mixed; boundary=c\r\n")),
            400,
        ),
        (multipart(part("title", b"eA==", None, "Content-Transfer-Encoding: base64\r\n")), 415),
        (multipart(TITLE, PHOTO) + b"epilogue", 200),
        (b"preamble\r\n" + multipart(TITLE, PHOTO), 200),
    ],
)
async def test_limits_and_malformed_forms(
    body: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is answered with a problem, is no error of the server, and the server continues."""
    async with serving(Photos) as client:
        found, answer = await send(client, body)
        again, _ = await send(client, multipart(TITLE, PHOTO))

    assert (found, again) == (status, 200)
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []
    assert status == 200 or answer["status"] == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 400),
        ("multipart/mixed; boundary=b", 415),
        (f"multipart/form-data; boundary={'b' * 80}", 400),
    ],
)
async def test_other_content_types(kind: str, status: int) -> None:
    """A form with a file has to be multipart/form-data, with a boundary."""
    async with serving(Photos) as client:
        body = multipart(TITLE, PHOTO)
        answer = await client.post("/photos", body=body, headers={"Content-Type": kind})

    assert answer.status == status


async def test_a_large_urlencoded_form() -> None:
    """It is kept in memory, so it has a limit of its own."""
    head = HEAD.replace(b"multipart/form-data", URLENCODED).replace(b"/photos", b"/search")
    bodies = [b"words=" + b"x" * MAX_TEXT, b"&" * MAX_PARTS, b"words=%FF", b"words=%C3%A4"]
    requests = [head + b"Content-Length: %d\r\n\r\n" % len(each) + each for each in bodies]
    async with serving(Search, max_body=8 * MIB) as client:
        answers = [await first_answer(client, each) for each in requests]

    assert [int(each.split()[1]) for each in answers] == [413, 413, 400, 200]


async def test_files_are_removed(temporary_files: Callable[[], int]) -> None:
    """After the call a file cannot be read, and its descriptor is closed."""

    class Fails(HTTPView):
        routes = ["/fails"]
        timeout = 0.05
        max_body = 4 * MIB

        async def post(self, photo: Annotated[UploadFile, Form], how: str = "") -> None:
            kept.append(photo)
            if how == "late":
                await asyncio.sleep(60.0)
            raise RuntimeError

    kept.clear()
    async with serving(Photos, Fails) as client:
        form = {"title": "Tea", "photo": UploadFile(LARGE, "a")}
        assert (await client.post("/photos", form=form)).status == 200
        form["photo"] = UploadFile(LARGE, "a")
        assert (await client.post("/fails", form=form)).status == 500
        form["photo"] = UploadFile(LARGE, "a")
        assert (await client.post("/fails", form=form, query={"how": "late"})).status == 504
        assert temporary_files() == 0

    assert len(kept) == 3
    for each in kept:
        with pytest.raises(ValueError, match="the request that it came with has ended"):
            await each.read()


async def test_a_client_that_leaves(temporary_files: Callable[[], int]) -> None:
    """What has arrived of its files is removed."""
    start = HEAD + b"Content-Length: 3000000\r\n\r\n--b\r\n" + part("photo", LARGE, "a")
    async with serving(Photos) as client:
        port = int(client.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        await writer.drain()
        await eventually(lambda: bool(temporary_files()), what="a temporary file")
        writer.transport.abort()
        await eventually(lambda: not temporary_files(), what="the file is removed")


async def test_the_memory_of_an_upload() -> None:
    """A file of 64 MiB is never in memory as a whole."""

    class Sizes(HTTPView):
        routes = ["/photos"]
        max_body = 65 * MIB

        async def post(self, file: Annotated[UploadFile, Form]) -> int:
            return sum([len(chunk) async for chunk in file.chunks()])

    start = b"--b\r\n" + part("file", b"", "a")
    length = b"Content-Length: %d\r\n\r\n" % (len(start) + 64 * MIB + len(b"\r\n--b--\r\n"))
    async with serving(Sizes) as client:
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        before = peak_memory()
        writer.write(HEAD + length + start)
        for _ in range(64 * 16):
            writer.write(b"x" * (MIB // 16))
            await writer.drain()
        writer.write(b"\r\n--b--\r\n")
        answer = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(8)
        grown = peak_memory() - before
        writer.close()

    assert answer.endswith(b"\r\n\r\n%d" % (64 * MIB))
    assert grown < 24 * MIB


async def test_a_slow_upload(temporary_files: Callable[[], int]) -> None:
    """A client that stops sending gets a 408, and the files are removed."""
    start = HEAD + b"Content-Length: 3000000\r\n\r\n--b\r\n" + part("photo", LARGE, "a")
    async with serving(Photos, read_timeout=0.5) as client:
        answer = await everything(client, start)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert temporary_files() == 0


async def test_a_chunked_upload() -> None:
    """The body may come in chunks, and the boundary in the middle of any of them."""
    body = multipart(TITLE, PHOTO)
    chunks = b"".join(b"1\r\n%c\r\n" % each for each in body) + b"0\r\n\r\n"
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    async with serving(Photos) as client:
        assert (await first_answer(client, head + chunks)).startswith(b"HTTP/1.1 200 ")


async def test_save(tmp_path: Path) -> None:
    """The whole content is saved, whatever was read before."""

    class Saves(HTTPView):
        routes = ["/saves"]

        async def post(self, file: Annotated[UploadFile, Form]) -> None:
            await file.read(5)
            await file.save(tmp_path / "saved")
            file.file.seek(-3, os.SEEK_END)
            assert await file.read() == LARGE[-3:]

    async with serving(Saves, max_body=4 * MIB) as client:
        answer = await client.post("/saves", form={"file": UploadFile(LARGE, "../../etc/passwd")})

    assert answer.status == 204
    assert (tmp_path / "saved").read_bytes() == LARGE


async def test_a_file_in_a_test() -> None:
    """A test calls the method with files of its own."""
    made = UploadFile(b"tea", "a.png", "image/png")

    found = await Photos().post("Tea", made)

    assert (found["photo"], found["start"]) == (["a.png", "image/png", 3], "tea")
    assert repr(made) == "<UploadFile 'a.png' image/png 3 bytes>"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\a.png", "a.png"),
        ("a\x00b\r\nc.png", "abc.png"),
        ("\u202egnp.exe", "gnp.exe"),
        ("..", ""),
        (" .hidden ", "hidden"),
        ("e\u0301", "\u00e9"),
        ("x" * 999, "x" * 255),
        ("\ud800a", "a"),
    ],
)
def test_names_of_files(given: str, name: str) -> None:
    """They have no directory and nothing that cannot be seen."""
    assert safe_filename(given) == name


async def test_hidden_types() -> None:
    """A malformed content type of a file is that of any bytes."""
    file = part("photo", b"x", "a", "Content-Type: <script>\r\n")
    async with serving(Photos) as client:
        _, found = await send(client, multipart(TITLE, file))

    assert found["photo"][1] == "application/octet-stream"


def faults_of(**parameters: Any) -> str:
    """Return the faults of a view whose method takes these parameters."""

    code = f"async def post(self, {', '.join(parameters)}): ..."
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    namespace["post"].__annotations__ = {**parameters, "return": None}
    view = type("View", (HTTPView,), {"routes": ["/"], "post": namespace["post"]})
    with pytest.raises(DeclarationError) as raised:
        Runner(container_of(NO_BROKER), packages=[package_of(view)]).assemble()
    return str(raised.value)


class Nested(BaseModel):
    inner: Upload


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"a": Annotated[str, Form], "b": Upload}, "'b' is read from the body, and so is 'a'"),
        ({"a": Annotated[str, Form], "b": Annotated[Upload, Form]}, "is a whole form, and other"),
        ({"a": Annotated[Nested, Form]}, "has a field 'inner' that a form cannot contain"),
        ({"a": Annotated[dict[str, int], Form]}, "has a field 'a' that a form cannot contain"),
        ({"a": Annotated[HTTPClient, Form]}, "has a field 'a' that a form cannot contain"),
        ({"a": UploadFile}, "is a file, which comes from a form: write Annotated[Up"),
    ],
)
def test_faults(parameters: dict[str, Any], fault: str) -> None:
    """`workerkit check` finds what no form can contain."""
    assert fault in faults_of(**parameters)


def test_a_form_of_a_get() -> None:
    """It has no body."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self, a: Annotated[str, Form]) -> None: ...

    with pytest.raises(DeclarationError, match="is read from the body, and a GET has none"):
        Runner(container_of(NO_BROKER), packages=[package_of(View)]).assemble()


def test_the_document() -> None:
    """A form has a schema, files are binary, and both content types are there."""
    container = container_of(NO_BROKER)
    package = package_of(Photos, Uploads, Search)
    made = document(Runner(container, packages=[package]).assemble().declared)
    validate(made)

    body = made["paths"]["/photos"]["post"]["requestBody"]
    [media] = body["content"].values()
    schema = media["schema"]
    if "$ref" in schema:
        schema = made["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    binary = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    assert body["required"]
    assert schema["properties"]["photo"] == {**binary, "title": "Photo"}
    assert schema["required"] == ["title", "photo"]
    assert media["encoding"]["photo"] == {"contentType": "application/octet-stream"}
    search = made["paths"]["/search"]["post"]["requestBody"]
    assert not search["required"]
    kinds = ["application/x-www-form-urlencoded", "multipart/form-data"]
    assert sorted(search["content"]) == kinds
    assert {"400", "408", "413", "415", "422"} <= set(made["paths"]["/photos"]["post"]["responses"])


PIECES = st.sampled_from(
    [
        b"--b\r\n",
        b"--b--\r\n",
        b"--b",
        b"\r\n",
        b"\n",
        b"--",
        b"--bb\r\n",
        b'Content-Disposition: form-data; name="photo"; filename="a"\r\n\r\n',
        b'Content-Disposition: form-data; name="title"\r\n\r\n',
        b'Content-Disposition: form-data; name="\r\n\r\n',
        b"Content-Disposition: form-data; name*=utf-8''%FF\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Encoding: gzip\r\n",
        b"\x00\xff",
        b"x" * 100,
    ]
)


def test_fuzzed_forms(temporary_files: Callable[[], int]) -> None:
    """Whatever the pieces of a form are, and in which chunks they come, there is an answer."""

    @settings(
        max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(PIECES, max_size=12), st.integers(1, 50))
    def fuzz(pieces: list[bytes], size: int) -> None:
        loop.run_until_complete(ask(b"".join(pieces), size))

    async def ask(body: bytes, size: int) -> None:
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        status = int((await first_answer(client, head + sent)).split()[1])
        assert status in (200, 400, 413, 415, 422)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        served = serving(Photos)
        client = runner.run(served.__aenter__())
        try:
            fuzz()
            assert temporary_files() == 0
        finally:
            runner.run(served.__aexit__(None, None, None))


def peak_memory() -> int:
    """Return the largest number of bytes of memory that this process has used."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(each for each in lines if each.startswith("VmHWM")).split()[1])


@pytest.fixture
def temporary_files() -> Callable[[], int]:
    """Return a function that counts the nameless files which this process has opened since."""

    def count() -> int:
        found = 0
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found += str(each.readlink()).endswith("(deleted)")
        return found

    before = count()
    return lambda: count() - before
