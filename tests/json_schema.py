"""The part of JSON Schema that pydantic writes, so that tests need no validator package."""

TYPES = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "minProperties": lambda value, bound: len(value) >= bound,
    "maxProperties": lambda value, bound: len(value) <= bound,
}
READ = {
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "enum",
    "items",
    "properties",
    "required",
    "type",
    *BOUNDS,
}
IGNORED = {"$defs", "$schema", "default", "description", "title"}


def violations(value, schema, root=None, place="$"):
    """Return the places of the value that do not fit the schema."""
    root = schema if root is None else root
    unknown = set(schema) - READ - IGNORED
    assert not unknown, f"this validator does not know {unknown}"
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return violations(value, target, root, place)
    if "anyOf" in schema:
        branches = [violations(value, branch, root, place) for branch in schema["anyOf"]]
        return [] if any(found == [] for found in branches) else min(branches, key=len)
    return _mismatch(value, schema, place) or _inside(value, schema, root, place)


def _mismatch(value, schema, place):
    kind = schema.get("type")
    if kind and (
        not isinstance(value, TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))
    ):
        return [f"{place}: {value!r} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is none of {schema['enum']}"]
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"]
    broken = [key for key, fits in BOUNDS.items() if key in schema and not fits(value, schema[key])]
    return [f"{place}: {value!r} breaks {key} {schema[key]}" for key in broken]


def _inside(value, schema, root, place):
    found = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += violations(item, schema.get("items", {}), root, f"{place}[{index}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{place}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            rest = schema.get("additionalProperties", True)
            below = known.get(key, {} if rest is True else rest)
            if below is False:
                found.append(f"{place}: unknown {key}")
            else:
                found += violations(item, below, root, f"{place}.{key}")
    return found
