//! Limits on resources.

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::sched_getaffinity,
};

use crate::{Grants, Layer, Limits, Missing};

/// Memory on top of the limit's, for the program itself and its allocator.
const PROGRAM_BYTES: u64 = 256 << 20;
/// For the stacks of two threads a processor: a stack counts with its whole size, however little of it is used.
const STACKS_BYTES_PER_PROCESSOR: u64 = 16 << 20;
/// What may be reserved beyond what may be written. Allocators reserve far more than they use; without a bound, the tables of pages
/// that are only reserved would be a way around the limit on memory.
const RESERVED_BYTES: u64 = 64 << 30;
/// The largest stack: it does not count as data.
const STACK_BYTES: u64 = 64 << 20;

/// Applies limits to this process.
pub(crate) fn apply(limits: &Limits, grants: &Grants, own_users: bool) -> Result<(), Missing> {
    // No core dumps, no message queues: they are memory and files that nothing else would count.
    limit(Resource::Core, 0)?;
    limit(Resource::Msgqueue, 0)?;
    limit(Resource::Stack, STACK_BYTES)?;
    limit_if(Resource::Fsize, limits.file_bytes)?;
    limit_if(Resource::Nofile, limits.open_files)?;
    if own_users {
        limit_if(Resource::Nproc, limits.processes)?;
    }
    if let Some(memory) = limits.memory_bytes {
        let processors = sched_getaffinity(None).map_or(1, |set| u64::from(set.count()));
        let written = memory.saturating_add(PROGRAM_BYTES).saturating_add(processors.saturating_mul(STACKS_BYTES_PER_PROCESSOR));
        // What can be written counts, not what is reserved.
        limit(Resource::Data, written)?;
        // Drivers of graphics processors reserve an address for all the memory there is.
        if grants.devices.is_empty() {
            limit(Resource::As, written.saturating_mul(2).saturating_add(RESERVED_BYTES))?;
        }
    }
    if let Some(seconds) = limits.cpu_seconds {
        // A warning first (SIGXCPU), then the end.
        set(Resource::Cpu, Some(seconds), Some(seconds.saturating_add(1)))?;
    }
    Ok(())
}

fn limit_if(resource: Resource, wanted: Option<u64>) -> Result<(), Missing> {
    wanted.map_or(Ok(()), |wanted| limit(resource, wanted))
}

/// A limit that is stricter already stays: raising it is not ours to do.
fn limit(resource: Resource, wanted: u64) -> Result<(), Missing> {
    let now = getrlimit(resource);
    let least = |current: Option<u64>| Some(current.map_or(wanted, |current| current.min(wanted)));
    set(resource, least(now.current), least(now.maximum))
}

fn set(resource: Resource, current: Option<u64>, maximum: Option<u64>) -> Result<(), Missing> {
    setrlimit(resource, Rlimit { current, maximum }).map_err(|error| Missing::new(Layer::Limits, format!("{resource:?}: {error}")))
}
