//! What chat templates expect to be there. They are written for Python's Jinja as `transformers` sets it up.

use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value,
    value::{Kwargs, ValueKind},
};

/// How many steps a chat template may take.
const MAX_STEPS: u64 = 1_000_000;

pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |reason: String| -> Result<String, Error> { Err(invalid(reason)) });
    environment.add_function("strftime_now", |format: String| {
        jiff::fmt::strtime::format(&format, jiff::Timestamp::now()).map_err(|error| invalid(error.to_string()))
    });
    environment.add_filter("tojson", to_json);
    environment
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// The marks of what a model is trained on are no part of a prompt: they become comments, which take the same space away around them.
pub(super) fn without_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(place) = ["{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (before, tag) = rest.split_at(place);
        text.push_str(before);
        let end = if tag.starts_with("{#") { "#}" } else { "%}" };
        let Some((tag, after)) = tag.split_at(2).1.split_once(end) else { return text + tag };
        if end == "#}" {
            text.extend(["{#", tag, end]);
            rest = after;
            continue;
        }
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let (open, close) = if matches!(name, "generation" | "endgeneration") { ("{#", "#}") } else { ("{%", "%}") };
        text.extend([open, tag, close]);
        rest = after;
    }
    text + rest
}

/// The methods of Python's texts, lists and dicts.
fn method(state: &State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if value.kind() != ValueKind::String {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments);
    }
    let text = value.as_str().unwrap_or_default();
    let word = || arguments.first().and_then(Value::as_str).ok_or_else(|| invalid(format!("{name}: takes a text")));
    match name {
        "removeprefix" => Ok(word().map(|word| text.strip_prefix(word).unwrap_or(text))?.into()),
        "removesuffix" => Ok(word().map(|word| text.strip_suffix(word).unwrap_or(text))?.into()),
        "rsplit" if arguments.first().is_some_and(|separator| !separator.is_none()) => {
            let separator = word()?;
            if separator.is_empty() {
                return Err(invalid("rsplit: the separator is empty"));
            }
            let most = arguments.get(1).and_then(Value::as_i64).and_then(|most| usize::try_from(most).ok());
            let mut parts: Vec<&str> = match most {
                Some(most) => text.rsplitn(most.saturating_add(1), separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// How many spaces JSON is indented by at most, and how deep a value may be: a template is not to use up memory or stack by a number.
const MAX_INDENT: usize = 32;
const MAX_DEPTH: usize = 64;

/// JSON as Python's `json.dumps` writes it, which is what models have seen. The order of keys is that of the value.
#[allow(clippy::needless_pass_by_value, reason = "filters take them so")]
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?.map(|indent| indent.min(MAX_INDENT));
    let is_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    // Understood, and without effect: pairs of separators other than Python's own, and sorted keys, are in no template that is known.
    let (_, _) = (options.get::<Option<Value>>("separators")?, options.get::<Option<bool>>("sort_keys")?);
    options.assert_all_used()?;
    let mut text = String::new();
    write(&mut text, value, indent, 0)?;
    if is_ascii {
        let escape = |text: String, c: char| match c {
            c if c.is_ascii() => text + c.encode_utf8(&mut [0; 4]),
            c => c.encode_utf16(&mut [0; 2]).iter().fold(text, |text, unit| text + &format!("\\u{unit:04x}")),
        };
        text = text.chars().fold(String::new(), escape);
    }
    Ok(Value::from_safe_string(text))
}

fn write(text: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && value.kind() != ValueKind::Seq || value.len() == Some(0) {
        text.push_str(&serde_json::to_string(value).map_err(|error| invalid(error.to_string()))?);
        return Ok(());
    }
    if depth >= MAX_DEPTH {
        return Err(invalid(format!("tojson: the value is deeper than {MAX_DEPTH}")));
    }
    text.push(if is_map { '{' } else { '[' });
    for (place, item) in value.try_iter()?.enumerate() {
        text.push_str(if place > 0 { comma } else { "" });
        line(text, depth + 1);
        if is_map {
            text.push_str(&serde_json::to_string(&item.to_string()).map_err(|error| invalid(error.to_string()))?);
            text.push_str(": ");
            write(text, &value.get_item(&item)?, indent, depth + 1)?;
        } else {
            write(text, &item, indent, depth + 1)?;
        }
    }
    line(text, depth);
    text.push(if is_map { '}' } else { ']' });
    Ok(())
}
