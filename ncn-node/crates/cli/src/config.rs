//! A node's options, out of a file: `ncn gateway --config FILE`. A key of the file is an option's name, so that nothing is said in two ways.
//! What the command line says goes before the environment, and this before the file.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _, error::ErrorKind, parser::ValueSource};
use toml::de::{DeTable, DeValue};

use crate::{Arguments, Failure, files::read_within, typed};

/// Which programs may be told by a file.
const NODES: [&str; 3] = ["gateway", "compute", "registry"];
const MAX_BYTES: usize = 64 << 10;
/// What is said about the file itself, and not in it.
const OWN: [&str; 4] = ["config", "check", "help", "version"];

#[derive(clap::Args)]
pub(crate) struct ConfigArguments {
    /// A file with options, in TOML: `ncn config example` prints one. What is said here goes before it, and so does the environment, where the option
    /// --least-relayed of a gateway is NCN_GATEWAY_LEAST_RELAYED
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say what is wrong with the options, and start nothing
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a file with all options of a node, their meaning and their defaults
    Example {
        /// Of which node: gateway, compute or registry
        #[arg(value_parser = NODES)]
        node: String,
    },
}

pub(crate) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Example { node } = command;
    Ok(std::io::stdout().write_all(example(node).as_bytes())?)
}

/// The program's arguments: of the command line, of the environment, and of a file where one is named.
pub(crate) fn parse() -> Result<Arguments, Failure> {
    let said: Vec<OsString> = std::env::args_os().collect();
    let command = command();
    let known = command.clone().ignore_errors(true).try_get_matches_from(&said);
    let file = known.as_ref().ok().and_then(|known| {
        let (node, known) = known.subcommand().filter(|(node, _)| NODES.contains(node))?;
        Some((node, known, known.try_get_one::<PathBuf>("config").ok()??.clone()))
    });
    let all = match file {
        Some((node, known, path)) => with_file(&command, node, known, &path, &said)?,
        None => said,
    };
    let parsed = command.try_get_matches_from(all).and_then(|matches| Arguments::from_arg_matches(&matches));
    Ok(parsed.unwrap_or_else(|error| error.exit()))
}

/// The program, whose nodes take options from the environment, too.
fn command() -> Command {
    let of_environment = |node: &'static str| {
        move |command: Command| {
            command.mut_args(|arg| match arg.get_long() {
                Some(long) if !OWN.contains(&long) && arg.get_env().is_none() => {
                    let name = format!("NCN_{node}_{long}").replace('-', "_").to_uppercase();
                    arg.env(name).hide_env(true)
                }
                _ => arg,
            })
        }
    };
    NODES.into_iter().fold(Arguments::command(), |command, node| command.mut_subcommand(node, of_environment(node)))
}

/// The options of a node that a file may have.
fn options<'a>(command: &'a Command, node: &str) -> impl Iterator<Item = (&'a str, &'a Arg)> {
    let arguments = command.find_subcommand(node).into_iter().flat_map(Command::get_arguments);
    arguments.filter_map(|arg| Some((arg.get_long()?, arg))).filter(|(long, _)| !OWN.contains(long))
}

/// What is wrong, and where in the file.
struct Problem {
    line: usize,
    text: String,
}

/// The arguments with those of the file before them that are not said otherwise.
fn with_file(command: &Command, node: &str, known: &ArgMatches, path: &Path, said: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let refuse = |problem: &str| Failure::Input(format!("--config {}: {problem}", typed(path)));
    let text = read_within(path, MAX_BYTES).map_err(|error| refuse(&error.to_string()))?;
    let text = text.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| refuse("is no text of at most 64 KiB"))?;
    let line = |span: Range<usize>| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
    let table = DeTable::parse(&text).map_err(|error| {
        let at = error.span().map(|span| format!("line {}: ", line(span))).unwrap_or_default();
        refuse(&format!("{at}{}", error.message()))
    })?;
    let (mut arguments, mut problems) = (Vec::new(), Vec::new());
    for (key, value) in table.get_ref() {
        let line = line(key.span());
        let mut problem = |text: String| problems.push(Problem { line, text });
        let Some((_, arg)) = options(command, node).find(|(long, _)| *long == key.get_ref().as_ref()) else {
            problem(format!("{}: is no option of `ncn {node}`: see `ncn config example {node}`", key.get_ref()));
            continue;
        };
        let values = match written(arg, value.get_ref()) {
            Ok(values) => values,
            Err(expected) => {
                problem(format!("{}: has to be {expected}", key.get_ref()));
                continue;
            }
        };
        if let Some(wrong) = values.iter().find_map(|value| refused(command, node, value)) {
            problem(wrong);
        }
        let is_said =
            matches!(known.value_source(arg.get_id().as_str()), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if !is_said {
            arguments.extend(values);
        }
    }
    if problems.is_empty() {
        // Behind the node's name.
        let at = said.iter().position(|argument| argument == node).map_or(said.len(), |at| at + 1);
        let (before, after) = said.split_at(at);
        return Ok(before.iter().cloned().chain(arguments.into_iter().map(OsString::from)).chain(after.iter().cloned()).collect());
    }
    problems.sort_by_key(|problem| problem.line);
    let problems: Vec<_> = problems.iter().map(|problem| format!("line {}: {}", problem.line, problem.text)).collect();
    Err(refuse(&problems.join("; ")))
}

/// A value as on the command line; what it has to be where it is not.
fn written(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    let long = arg.get_long().unwrap_or_default();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            DeValue::Boolean(true) => Ok(vec![format!("--{long}")]),
            DeValue::Boolean(false) => Ok(Vec::new()),
            _ => Err("true or false"),
        };
    }
    let scalar = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    };
    let is_list = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    let values = match value {
        DeValue::Array(values) if is_list && values.is_empty() => return Err("a list of one or more"),
        DeValue::Array(values) if is_list => values.iter().map(|value| scalar(value.get_ref())).collect(),
        value => scalar(value).map(|value| vec![value]),
    };
    let expected = if is_list { "a text, a number, or a list of them" } else { "a text or a number" };
    Ok(values.ok_or(expected)?.into_iter().map(|value| format!("--{long}={value}")).collect())
}

/// What is wrong with this option on its own.
fn refused(command: &Command, node: &str, option: &str) -> Option<String> {
    let error = command.clone().try_get_matches_from(["ncn", node, option]).err()?;
    // Others are missing, or said by others than the file.
    if matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict) {
        return None;
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Some(first.strip_prefix("error: ").unwrap_or(first).to_owned())
}

/// A file with all options.
fn example(node: &str) -> String {
    let command = command();
    let mut text = format!("# Options of `ncn {node}`, as in `ncn {node} --help`. Run it with `ncn {node} --config FILE`.\n");
    for (long, arg) in options(&command, node) {
        let _ = writeln!(text);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        for line in wrapped(&help) {
            let _ = writeln!(text, "# {line}");
        }
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| quoted(&value.to_string_lossy())).collect();
        let value = match (&*defaults, arg.get_action()) {
            (_, ArgAction::SetTrue) => "false".to_owned(),
            ([], _) => format!("\"{}\"", arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default()),
            ([one], _) => one.clone(),
            (several, _) => format!("[{}]", several.join(", ")),
        };
        let required = if arg.is_required_set() { "" } else { "#" };
        let _ = writeln!(text, "{required}{long} = {value}");
    }
    text
}

/// Numbers stand for themselves.
fn quoted(value: &str) -> String {
    if value.parse::<u64>().is_ok() { value.to_owned() } else { format!("\"{value}\"") }
}

/// Lines of about 100 characters.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if let Some(line) = lines.last_mut().filter(|line| line.is_empty() || line.len() + word.len() < 100) {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
