//! The layers of confinement, and why one is missing.

use std::{fmt, str::FromStr};

macro_rules! layers {
    ($($(#[$doc:meta])* $layer:ident = $name:literal, $remedy:literal;)*) => {
        /// One layer of confinement. Its name is what programs print and read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Layer { $($(#[$doc])* $layer,)* }

        impl Layer {
            /// All of them, outermost first.
            pub const ALL: &[Self] = &[$(Self::$layer),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$layer => $name),* }
            }

            /// What an operator can do when it is missing.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$layer => $remedy),* }
            }
        }
    };
}

layers! {
    /// The process that waits beside the confined one, and ends it when whoever started it is gone.
    Lifeline = "lifeline", "needs Linux 5.3 or newer";
    /// A user namespace: no privilege inside is one outside.
    UserNamespace = "user namespace", "allow them: user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 where these exist; in a container, a seccomp profile that lets unshare and mount through";
    /// A PID namespace: no process outside can be seen or signalled.
    PidNamespace = "PID namespace", "a kernel with CONFIG_PID_NS";
    /// A mount namespace: other files are not there at all.
    MountNamespace = "mount namespace", "allow mounts in user namespaces; in a container, mask no part of /proc (for example systempaths=unconfined)";
    /// A network namespace without a network.
    NetworkNamespace = "network namespace", "a kernel with CONFIG_NET_NS, and user.max_net_namespaces above 0";
    /// An IPC namespace: no shared memory, semaphores or queues with others.
    IpcNamespace = "IPC namespace", "a kernel with CONFIG_IPC_NS, and user.max_ipc_namespaces above 0";
    /// A UTS namespace: the host's name is not told.
    UtsNamespace = "UTS namespace", "a kernel with CONFIG_UTS_NS, and user.max_uts_namespaces above 0";
    /// A cgroup namespace: the host's groups are not told.
    CgroupNamespace = "cgroup namespace", "a kernel with CONFIG_CGROUPS, and user.max_cgroup_namespaces above 0";
    /// A root of its own, in place of the host's.
    Root = "own root", "a directory /tmp that can be written, and mounts in user namespaces";
    /// A user that owns nothing, and no capabilities.
    User = "unprivileged user", "start the node as an ordinary user, or as root with CAP_SETUID and CAP_SETGID; every granted path must be readable for the user that it becomes";
    /// A bound on what can be written.
    WritableSpace = "bounded writable space", "allow tmpfs mounts in user namespaces";
    /// Landlock: files, network, signals, abstract sockets.
    Landlock = "Landlock", "Linux 6.12 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm= list";
    /// The filter of system calls.
    Seccomp = "seccomp", "a kernel with CONFIG_SECCOMP_FILTER";
    /// No way to new privileges.
    NoNewPrivileges = "no new privileges", "Linux 3.5 or newer";
    /// Limits on resources.
    Limits = "resource limits", "lower the limits that are asked for, or raise the hard limits of the node's process";
    /// The program itself.
    Program = "program", "the program has to be there, be executable, and be granted";
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|layer| layer.name() == name).ok_or(())
    }
}

/// A layer that cannot be had, and why. Printed as `layer: reason`, and read back from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which layer.
    pub layer: Layer,
    /// Why it is missing.
    pub reason: String,
}

impl Missing {
    /// This layer, for this reason.
    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub fn new(layer: Layer, reason: impl ToString) -> Self {
        Self { layer, reason: reason.to_string() }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.layer, self.reason)
    }
}

impl std::error::Error for Missing {}

impl FromStr for Missing {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (layer, reason) = line.split_once(": ").ok_or(())?;
        Ok(Self::new(layer.parse()?, reason))
    }
}
