//! The OpenAPI document as a page for people. It needs nothing from outside and runs no script.

use std::fmt::Write as _;

use serde_json::{Map, Value};

const STYLE: &str = "
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding: .5rem 0; }
h2 code { font-size: 1rem; } h2 b { text-transform: uppercase; font-size: 1rem; }
td:nth-child(2) { min-width: 8rem; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .25rem .5rem .25rem 0; vertical-align: top; }
nav a { display: block; }
";

/// The page of this document.
pub(super) fn page(document: &Value) -> String {
    let info = &document["info"];
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title} {version}</h1><p>{about}</p>\
         <p><a href=openapi.json>openapi.json</a></p>",
        title = text(&info["title"]),
        version = text(&info["version"]),
        about = text(&info["description"]),
    );
    let empty = Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    let operations = || {
        let of_path = |path| move |(method, operation)| (path, method, operation);
        paths.iter().flat_map(move |(path, item)| item.as_object().into_iter().flatten().map(of_path(path)))
    };
    page.push_str("<nav>");
    for (path, method, operation) in operations() {
        let _ = write!(
            page,
            "<a href=#{id}><code>{method} {path}</code></a>",
            id = text(&operation["operationId"]),
            path = escaped(path)
        );
    }
    page.push_str("</nav><main>");
    for (path, method, operation) in operations() {
        write_operation(&mut page, path, method, operation);
    }
    page.push_str("<section><h1>Types</h1></section>");
    for (name, schema) in document.pointer("/components/schemas").and_then(Value::as_object).unwrap_or(&empty) {
        let about = text(&schema["description"]);
        let _ = write!(page, "<section id=type-{name}><h2>{name}</h2><p>{about}</p>", name = escaped(name));
        let _ = write!(page, "<p>{}</p></section>", shape(schema));
    }
    page.push_str("</main></html>");
    page
}

fn write_operation(page: &mut String, path: &str, method: &str, operation: &Value) {
    let (id, about) = (text(&operation["operationId"]), text(&operation["summary"]));
    let _ = write!(page, "<section id={id}><h2><b>{method}</b> <code>{}</code></h2><p>{about}</p><table>", escaped(path));
    if operation["security"].is_array() {
        page.push_str("<tr><td>header<td><code>Authorization: Bearer</code><td>the signed access");
    }
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let (place, name) = (text(&parameter["in"]), text(&parameter["name"]));
        let _ = write!(page, "<tr><td>{place}<td><code>{name}</code><td>{}", shape(&parameter["schema"]));
    }
    write_content(page, "body", "", &operation["requestBody"]);
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        write_content(page, status, &text(&response["description"]), response);
    }
    page.push_str("</table></section>");
}

fn write_content(page: &mut String, name: &str, about: &str, content: &Value) {
    let kinds = content["content"].as_object();
    for (kind, media) in kinds.into_iter().flatten() {
        let _ = write!(page, "<tr><td>{name}<td><code>{}</code><td>{} {about}", escaped(kind), shape(&media["schema"]));
    }
    if kinds.is_none() && content.is_object() {
        let _ = write!(page, "<tr><td>{name}<td><td>{about}");
    }
}

/// What a schema allows, in a few words.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("<a href=#type-{name}>{name}</a>", name = escaped(name));
    }
    let choices = ["oneOf", "anyOf"].into_iter().find_map(|key| schema[key].as_array());
    if let Some(choices) = choices {
        return choices.iter().map(shape).collect::<Vec<_>>().join(" or ");
    }
    if let Some(fields) = schema["properties"].as_object() {
        let fields = fields.iter().map(|(name, of_field)| {
            let about = text(&of_field["description"]);
            format!("<tr><td><code>{}</code><td>{}<td>{about}", escaped(name), shape(of_field))
        });
        return format!("<table>{}</table>", fields.collect::<String>());
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("<code>{}</code>", escaped(&value.to_string()))).collect::<Vec<_>>().join(" or ");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(text).collect::<Vec<_>>().join(" or "),
        kind => text(kind),
    };
    match (&schema["items"], &schema["additionalProperties"]) {
        (items @ Value::Object(_), _) => format!("list of {}", shape(items)),
        (_, of @ Value::Object(_)) => format!("by name: {}", shape(of)),
        _ => match schema["pattern"].as_str() {
            Some(pattern) => format!("{kind} <code>{}</code>", escaped(pattern)),
            None => kind,
        },
    }
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
