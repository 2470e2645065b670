"""What has broken servers: values, schemas, grammars, tools, media, headers and names."""

from __future__ import annotations

from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 5e-324, "", " ", "\x00",
    "\u202e", "a" * 5_000, "\ufeff", "null", "../../etc/passwd", "{{ 7 * 7 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "<|im_end|>", "%s%n", [], [[]], [None], {}, {"": {}}, {"a": {"b": [1]}}, ["x"] * 300, [0] * 5_000,
]  # fmt: skip
DEEP: dict[str, Any] = {"type": "string"}
for _ in range(6):
    DEEP = {"anyOf": [DEEP, {"type": "object", "properties": {"a": DEEP}}]}
for _ in range(14):
    DEEP = {"items": DEEP}
SCHEMAS: list[Any] = [
    DEEP, {"$ref": "#"}, {"$ref": "#/definitions/nothing"}, {"$ref": "http://127.0.0.1:1/x.json"},
    {"$ref": "file:///etc/passwd"}, {"type": "x"}, {"type": []}, {"enum": []},
    {"enum": [str(i) for i in range(10_000)]},
    {"pattern": "(a+)+$", "type": "string"}, {"pattern": "(", "type": "string"}, {"pattern": "(?=a)", "type": "string"},
    {"minLength": 10**9, "type": "string"}, {"minItems": 10**9, "type": "array"}, {"multipleOf": 0, "type": "number"},
    {"minimum": 5, "maximum": 4, "type": "integer"}, {"properties": {str(i): {"type": "string"} for i in range(2_000)}},
    {"definitions": {"a": {"$ref": "#/definitions/a"}}, "$ref": "#/definitions/a"}, {"allOf": [False]}, {"not": {}},
    {"required": ["a"], "properties": {"a": False}}, False, "{", "[]", {"additionalProperties": {"$ref": "#"}},
]  # fmt: skip
REGEXES = [
    "(a+)+$",
    "((a{1000}){1000}){1000}",
    "(",
    "[",
    "(?=a)b",
    "\\",
    "a{99999999}",
    "(" * 500 + ")" * 500,
    "\\p{X}",
    "[^\\x00-\\U0010ffff]",
]
GRAMMARS = [
    "start: start", "start: a\na: b\nb: a", "start: /(a+)+/", "start: nothing", "start:", "root ::= root", "root ::= [",
    "start: " + "(" * 1_000 + '"a"' + ")" * 1_000, 'start: "a"{1000000}', "%import common.NOTHING", "\x00",
    "root ::= (" * 200,
    "start: " + " | ".join(f'"{i}"' for i in range(5_000)), 'start: "" start', "%llguidance {\nstart: /x/",
]  # fmt: skip
IMAGES = [
    {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}},
    {"type": "input_audio", "input_audio": {"data": "AAA", "format": "wav"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    {"type": "text"}, {"type": "file", "file": {"file_id": "x"}},
]  # fmt: skip
NAMES = (["f", "f"], [""], ["é"], ["a" * 65], [f"f{i}" for i in range(200)])
TOOLS: list[Any] = [
    *([{"type": "function", "function": {"name": "f", "parameters": schema}}] for schema in SCHEMAS),
    *([{"type": "function", "function": {"name": name}} for name in names] for names in NAMES),
    [{"type": "web_search"}], [{}], [1],
]  # fmt: skip
HEADERS = [
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Encoding: gzip",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Length: 5", "Content-Length: -1",
    "Content-Length: 99999999999999999999", "Content-Length: 0x10", "Expect: 100-continue", "Upgrade: websocket",
    "Connection: upgrade", "Connection: close, close", "Authorization: Bearer \xff\xfe", "X-Request-Id: \x7f",
    "X-LLM-D-SLO-TTFT-MS: nan", "x-slo-tpot-ms: -1", "x-priority: 9e9", "x-priority: 1001", "Host:",
    "Cookie: " + "a" * 9_000,
    "X-Long: " + "a" * 70_000, "Nocolon", " folded: x", "Bad Name: x", "Range: bytes=0-1", "If-None-Match: *",
    "\x00: x",
]  # fmt: skip
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X", "get", ""]
IDS = ["nothing", "%00", "%ff", "..%2f..", "a" * 3_000, "chatcmpl-0", "x_y-z", "'", "%2e%2e", "echo/../..", "\xe9", "*"]
