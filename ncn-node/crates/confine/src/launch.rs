//! What is to be started, how confined: as a value, and as the command line that carries it from one process to the next.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

/// What a confined process may use of the file system, besides what [`crate::SYSTEM`] and [`crate::HARMLESS`] name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files and directories that it may read.
    pub readable: Vec<PathBuf>,
    /// Files and directories that it may read and execute.
    pub executable: Vec<PathBuf>,
    /// Device files, or directories of them, that it may read, write and command.
    pub devices: Vec<PathBuf>,
    /// The directory that it may write, and that it starts in.
    pub work_directory: PathBuf,
}

/// Limits on resources. `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How much memory each process may write to, besides 256 MiB for the program itself and room for the stacks of its threads.
    pub memory_bytes: Option<u64>,
    /// How much processor time each process may use, all its threads together.
    pub cpu_seconds: Option<u64>,
    /// The largest file that may be written.
    pub file_bytes: Option<u64>,
    /// How much may be written to the work directory in all, which is then private and gone with the process.
    pub writable_bytes: Option<u64>,
    /// How many processes and threads there may be at once.
    pub processes: Option<u64>,
    /// How many files each process may have open.
    pub open_files: Option<u64>,
}

/// What is to be started, how confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// What it may use.
    pub grants: Grants,
    /// How much of it.
    pub limits: Limits,
    /// Which variables of the environment it is given.
    pub environment: Vec<OsString>,
    /// The process with whose end this one is to end; the one that starts it when there is none.
    pub parent: Option<u32>,
    /// Which user and group it becomes when it is started by root.
    pub user: Option<u32>,
    /// Go on without what the kernel lacks of Landlock.
    pub partial: bool,
    /// In place of a program: print a [`crate::Report`].
    pub report: bool,
    /// The program, unless `report`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Launch {
    /// The options, as a person sees them.
    pub const USAGE: &str = "\
--work DIRECTORY [--read PATH].. [--exec PATH].. [--device PATH].. [--env NAME].. [--memory BYTES] [--cpu SECONDS] [--file BYTES] \
[--writable BYTES] [--processes NUMBER] [--files NUMBER] [--user ID] [--parent ID] [--partial] (--report | -- PROGRAM [ARGUMENT]..)";

    /// As a command line.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut line = Vec::new();
        let mut option = |name: &str, value: &OsStr| line.extend([name.into(), value.to_owned()]);
        for (name, paths) in
            [("--read", &self.grants.readable), ("--exec", &self.grants.executable), ("--device", &self.grants.devices)]
        {
            for path in paths {
                option(name, path.as_os_str());
            }
        }
        option("--work", self.grants.work_directory.as_os_str());
        for variable in &self.environment {
            option("--env", variable);
        }
        let numbers = [
            ("--memory", self.limits.memory_bytes),
            ("--cpu", self.limits.cpu_seconds),
            ("--file", self.limits.file_bytes),
            ("--writable", self.limits.writable_bytes),
            ("--processes", self.limits.processes),
            ("--files", self.limits.open_files),
            ("--user", self.user.map(u64::from)),
            ("--parent", self.parent.map(u64::from)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                option(name, number.to_string().as_ref());
            }
        }
        if self.partial {
            line.push("--partial".into());
        }
        if self.report {
            line.push("--report".into());
        } else {
            line.extend(["--".into(), self.program.clone().into()]);
            line.extend(self.arguments.iter().cloned());
        }
        line
    }

    /// From a command line; the problem when it is none.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let mut launch = Self::default();
        loop {
            let option = arguments.next().ok_or("needs --report or a program after --")?;
            match option.as_bytes() {
                b"--" => break,
                b"--partial" => {
                    launch.partial = true;
                    continue;
                }
                b"--report" => {
                    launch.report = true;
                    break;
                }
                _ => {}
            }
            let name = option.to_string_lossy().into_owned();
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || {
                let number = value.to_str().and_then(|value| value.parse::<u64>().ok());
                number.ok_or_else(|| format!("{name}: {} is no number", value.display()))
            };
            let small = || u32::try_from(number()?).map_err(|_| format!("{name} is too large"));
            match name.as_str() {
                "--read" => launch.grants.readable.push(value.into()),
                "--exec" => launch.grants.executable.push(value.into()),
                "--device" => launch.grants.devices.push(value.into()),
                "--work" => launch.grants.work_directory = value.into(),
                "--env" => launch.environment.push(value),
                "--memory" => launch.limits.memory_bytes = Some(number()?),
                "--cpu" => launch.limits.cpu_seconds = Some(number()?),
                "--file" => launch.limits.file_bytes = Some(number()?),
                "--writable" => launch.limits.writable_bytes = Some(number()?),
                "--processes" => launch.limits.processes = Some(number()?),
                "--files" => launch.limits.open_files = Some(number()?),
                "--user" => launch.user = Some(small()?),
                "--parent" => launch.parent = Some(small()?),
                _ => return Err(format!("{name} is no option")),
            }
        }
        if !launch.report {
            launch.program = arguments.next().ok_or("needs a program after --")?.into();
            launch.arguments = arguments.collect();
        }
        let grants = &launch.grants;
        let paths = [&grants.readable, &grants.executable, &grants.devices].into_iter().flatten();
        if let Some(path) = paths.chain([&grants.work_directory]).find(|path| !path.is_absolute()) {
            return Err(format!("{:?}: needs an absolute path", path.display()));
        }
        Ok(launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_carries_everything() {
        let launch = Launch {
            grants: Grants {
                readable: vec!["/a".into(), "/b c".into()],
                executable: vec!["/opt".into()],
                devices: vec!["/dev/dri".into()],
                work_directory: "/work".into(),
            },
            limits: Limits {
                memory_bytes: Some(1),
                cpu_seconds: Some(2),
                file_bytes: Some(3),
                writable_bytes: Some(4),
                processes: Some(5),
                open_files: Some(6),
            },
            environment: vec!["PATH".into()],
            parent: Some(7),
            user: Some(8),
            partial: true,
            report: false,
            program: "/bin/echo".into(),
            arguments: vec!["--read".into(), "--".into()],
        };
        assert_eq!(Launch::parse(launch.to_arguments()), Ok(launch));
        let report =
            Launch { report: true, grants: Grants { work_directory: "/w".into(), ..Grants::default() }, ..Launch::default() };
        assert_eq!(Launch::parse(report.to_arguments()), Ok(report));
    }

    #[test]
    fn a_command_line_that_makes_no_sense_is_said_so() {
        let problem = |line: &str| Launch::parse(line.split_whitespace().map(Into::into)).unwrap_err();
        for (line, expected) in [
            ("", "--report"),
            ("--work", "--work needs a value"),
            ("--work /w --cpu x --report", "--cpu: x is no number"),
            ("--work /w --user 99999999999 --report", "--user is too large"),
            ("--work /w --what x --report", "--what is no option"),
            ("--work /w --", "a program after --"),
            ("--report", "absolute"),
            ("--work /w --read here --report", "absolute"),
        ] {
            assert!(problem(line).contains(expected), "{line}: {}", problem(line));
        }
    }
}
