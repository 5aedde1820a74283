"""Envoy's own protobuf classes (from the package xds-protos), in a separate process.

A single process cannot import both these classes and the project's own, because both
define the name ``envoy`` and some of the same symbols.

This program reads {"responses": [base64], "requests": [ProcessingRequest as JSON]} on
standard input and writes {"responses": [JSON], "requests": [base64], "fields": ...,
"enums": ...}.
"""

import base64
import json
import sys
from collections.abc import Iterator
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2
from google.protobuf import json_format

MODULES = (
    base_pb2,
    processing_mode_pb2,
    external_processor_pb2,
    accesslog_pb2,
    als_pb2,
)


def messages(descriptors: Any) -> Iterator[Any]:
    """Return the messages, including nested ones."""
    for descriptor in descriptors:
        yield descriptor
        yield from messages(descriptor.nested_types)


def all_messages() -> Iterator[Any]:
    """Return all messages of the imported modules."""
    for module in MODULES:
        yield from messages(module.DESCRIPTOR.message_types_by_name.values())


def name_of(descriptor: Any) -> str:
    """Return a message's name, prefixed by the names of its enclosing messages."""
    outer = descriptor.containing_type
    return f"{name_of(outer)}.{descriptor.name}" if outer else descriptor.name


def fields() -> dict[str, dict[str, list[object]]]:
    """Return each message's fields with number, type, repetition and type name."""
    return {
        name_of(message): {
            field.name: [
                field.number,
                field.type,
                field.is_repeated,
                (field.message_type or field.enum_type).name
                if field.message_type or field.enum_type
                else "",
            ]
            for field in message.fields
        }
        for message in all_messages()
    }


def enums() -> dict[str, dict[str, int]]:
    """Return the values of each nested enum, by the enum's name."""
    return {
        enum.name: {value.name: value.number for value in enum.values}
        for message in all_messages()
        for enum in message.enum_types
    }


def read(data: str) -> object:
    message = external_processor_pb2.ProcessingResponse.FromString(
        base64.b64decode(data)
    )
    as_dict = json_format.MessageToDict(message, preserving_proto_field_name=True)
    as_dict["response"] = message.WhichOneof("response")
    as_dict["unknown"] = message.SerializeToString() != _known(message)
    return as_dict


def _known(message: external_processor_pb2.ProcessingResponse) -> bytes:
    message.DiscardUnknownFields()
    return message.SerializeToString()


def write(document: dict[str, Any]) -> str:
    message = json_format.ParseDict(
        document, external_processor_pb2.ProcessingRequest()
    )
    return base64.b64encode(message.SerializeToString()).decode()


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(
        {
            "responses": [read(data) for data in asked.get("responses", [])],
            "requests": [write(document) for document in asked.get("requests", [])],
            "fields": fields(),
            "enums": enums(),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
