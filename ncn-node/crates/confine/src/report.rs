//! What is in force for a process, as it finds it itself.

use std::{collections::BTreeMap, fmt, fs, io, str::FromStr};

use crate::{Layer, Missing};

/// The namespaces, by the names that /proc/self/ns has for them, and the layers that they are.
pub const NAMESPACES: [(&str, Layer); 7] = [
    ("user", Layer::UserNamespace),
    ("pid", Layer::PidNamespace),
    ("mnt", Layer::MountNamespace),
    ("net", Layer::NetworkNamespace),
    ("ipc", Layer::IpcNamespace),
    ("uts", Layer::UtsNamespace),
    ("cgroup", Layer::CgroupNamespace),
];

/// Lines of /proc/self/status that say something about confinement.
const STATUS: [&str; 5] = ["NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "Uid"];

/// What is in force for a process. Printed as lines of a name and a value, and read back from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(BTreeMap<String, String>);

impl Report {
    /// Looks at the calling process.
    pub fn of_this_process() -> io::Result<Self> {
        let mut values = BTreeMap::new();
        for (name, _) in NAMESPACES {
            let link = fs::read_link(format!("/proc/self/ns/{name}"))?;
            values.insert(name.to_owned(), link.to_string_lossy().into_owned());
        }
        let status = fs::read_to_string("/proc/self/status")?;
        for line in status.lines() {
            if let Some((name, value)) = line.split_once(':')
                && STATUS.contains(&name)
            {
                values.insert(name.to_owned(), value.split_whitespace().next().unwrap_or_default().to_owned());
            }
        }
        Ok(Self(values))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The first layer that is not in force, of those that every confined process has.
    pub fn check(&self) -> Result<(), Missing> {
        let is = |name: &str, wanted: &str, layer| {
            let found = self.value(name);
            if found == Some(wanted) { Ok(()) } else { Err(Missing::new(layer, format!("{name} is {found:?}"))) }
        };
        is("NoNewPrivs", "1", Layer::NoNewPrivileges)?;
        is("Seccomp", "2", Layer::Seccomp)
    }

    /// The first layer that is not in force, of those that a process has that is confined by all of them, unlike the one that `outside`
    /// reports on.
    pub fn check_all(&self, outside: &Self) -> Result<(), Missing> {
        self.check()?;
        for (name, layer) in NAMESPACES {
            if self.value(name).is_none() || self.value(name) == outside.value(name) {
                return Err(Missing::new(layer, "shared with the host"));
            }
        }
        for capabilities in ["CapEff", "CapPrm"] {
            let held = self.value(capabilities).unwrap_or_default();
            if held.is_empty() || held.bytes().any(|digit| digit != b'0') {
                return Err(Missing::new(Layer::User, format!("{capabilities} is {held:?}")));
            }
        }
        if self.value("Uid").is_none_or(|user| user == "0") {
            return Err(Missing::new(Layer::User, "it is root"));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.lines()
            .map(|line| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or(()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
