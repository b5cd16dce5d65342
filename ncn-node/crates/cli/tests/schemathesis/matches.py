"""Checks values against the schemas of an OpenAPI document: matches.py DOCUMENT VALUES, where VALUES is a JSON list of pairs of a schema's name and a value.

A field that a schema does not have is an error, so that the document says all that a gateway says.
"""

import json
import sys

import jsonschema_rs


def close(schema):
    if isinstance(schema, list):
        for item in schema:
            close(item)
    elif isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for item in schema.values():
            close(item)


document, values = (json.load(open(path)) for path in sys.argv[1:])
close(document["components"])
for name, value in values:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    errors = [f"{name}: {'/'.join(map(str, error.instance_path))}: {error.message}" for error in jsonschema_rs.iter_errors(schema, value)]
    if errors:
        sys.exit("\n".join(errors))
print(len(values), "values match")
