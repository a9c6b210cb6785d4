"""What the service answers, as an OpenAPI description: written by hand, and held to by tests that ask at random."""

from __future__ import annotations

from typing import Any

from distilhash.server.library import LARGEST_ID

PAGE, MOST_ON_A_PAGE = 60, 200
TOP, MOST_HITS = 120, 500

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _whole(least: int, most: int | None = None, default: int | None = None) -> Schema:
    schema: Schema = {"type": "integer", "minimum": least}
    return schema | ({} if most is None else {"maximum": most}) | ({} if default is None else {"default": default})


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
ID = _whole(0, LARGEST_ID)
PHOTO = {"id": ID, "name": TEXT, "path": TEXT, "thumbnail": TEXT, "image": TEXT}
SCHEMAS = {
    "Error": _object(error=TEXT),
    "Photo": _object(**PHOTO),
    "ListedPhoto": _object(**PHOTO, near_duplicates=_whole(0)),
    "Hit": _object(**PHOTO, distance=_whole(0), near_duplicate={"type": "boolean"}, like=_or_null(ID)),
    "Status": _object(
        photos=_whole(0), bits=_whole(1), hasher=TEXT, index=TEXT, near_duplicate_bits=_whole(0),
        most_upload_bytes=_whole(1), version=TEXT,
    ),
    "Photos": _object(
        photos={"type": "array", "items": _reference("ListedPhoto")}, total=_whole(0), next=_or_null(ID)
    ),
    "Neighbours": _object(
        query=_or_null(_reference("Photo")), hits={"type": "array", "items": _reference("Hit")},
        within=_or_null(_whole(0)),
    ),
}  # fmt: skip


def _query(name: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


_ID = {"name": "id", "in": "path", "required": True, "schema": ID}
_VERSION = _query("version", TEXT, "Anything: another address for another state of the file")


def _hits(bits: int) -> list[Schema]:
    return [
        _query("top", _whole(1, MOST_HITS, TOP), "Most hits, count"),
        _query("radius", _whole(0, bits), "Only hits so near, bits; left out: however far"),
    ]


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _reference(name)}}


def _answers(content: Schema, **errors: str) -> Schema:
    found: Schema = {"200": {"description": "Done", "content": content}}
    for status, text in {"_401": "No token", "_403": "A foreign host name or page", **errors}.items():
        found[status.removeprefix("_")] = {"description": text, "content": _json("Error")}
    return found


_WRONG = {"_400": "A parameter that makes no sense"}
_GONE = {**_WRONG, "_404": "No such photo"}
_AWAY = {"_503": "The index or a worker cannot be used now"}
_BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}


def description(version: str, bits: int, token: bool) -> Schema:
    """The description of a service whose codes have so many bits; ``token``: whether it asks for one."""
    photo, jpeg = "/api/photos/{id}", {"image/jpeg": _BINARY}
    paths = {
        "/api/status": {
            "get": {"summary": "What is served", "responses": _answers(_json("Status"), **_WRONG, **_AWAY)}
        },
        "/api/photos": {
            "get": {
                "summary": "Photos by id, page by page",
                "parameters": [
                    _query("after", _whole(-1, LARGEST_ID, -1), "The last id of the page before"),
                    _query("limit", _whole(1, MOST_ON_A_PAGE, PAGE), "Most photos, count"),
                ],
                "responses": _answers(_json("Photos"), **_WRONG, **_AWAY),
            }
        },
        f"{photo}/neighbours": {
            "get": {
                "summary": "The photos nearest to a photo",
                "parameters": [_ID, *_hits(bits)],
                "responses": _answers(_json("Neighbours"), **_GONE, **_AWAY),
            }
        },
        f"{photo}/thumbnail": {
            "get": {
                "summary": "A photo, small and upright",
                "parameters": [_ID, _VERSION],
                "responses": _answers(jpeg, **_GONE, **_AWAY),
            }
        },
        f"{photo}/image": {
            "get": {
                "summary": "A photo as it is; as JPEG where browsers do not show its format",
                "parameters": [_ID, _VERSION],
                "responses": _answers(
                    {f"image/{kind}": _BINARY for kind in ("jpeg", "png", "gif", "webp", "bmp")}, **_GONE, **_AWAY
                ),
            }
        },
        "/api/search": {
            "post": {
                "summary": "The photos nearest to an image that is sent",
                "parameters": _hits(bits),
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/octet-stream": _BINARY,
                        "image/*": _BINARY,
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "properties": {"image": _BINARY["schema"]},
                                "required": ["image"],
                            }
                        },
                    },
                },
                "responses": _answers(
                    _json("Neighbours"), **_WRONG, **_AWAY, _408="The image came too slowly",
                    _409="The index was made anew with another hasher", _413="An image of too many bytes",
                    _415="Neither an image nor a form", _422="An image that cannot be read",
                ),
            }
        },
    }  # fmt: skip
    found: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "distilhash: photos that are alike", "version": version},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if token:
        found["components"] = {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"token": []}]
    return found
