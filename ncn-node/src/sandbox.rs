//! Starting processes, confined as well as this system can.

#[cfg(target_os = "linux")]
pub(crate) mod confine;
#[cfg(target_os = "linux")]
mod reduced;
mod unconfined;

use std::sync::Arc;

use ncn_core::Sandbox;
#[cfg(target_os = "linux")]
pub use reduced::Reduced;
pub use unconfined::Unconfined;

use crate::executor::WorkerProgram;

/// The strongest sandbox that works here. `program` is one that calls [`crate::worker::init`]: it confines itself before it becomes
/// what is to be started.
///
/// Says loudly when nothing works and processes would run unconfined; who cannot accept that sets [`ncn_core::Policy::at_least`].
pub fn strongest(program: &WorkerProgram) -> Arc<dyn Sandbox> {
    #[cfg(target_os = "linux")]
    match Reduced::new(program) {
        Ok(reduced) => return Arc::new(reduced),
        Err(error) => tracing::error!(%error, "MODELS RUN UNCONFINED: this system cannot confine them"),
    }
    #[cfg(not(target_os = "linux"))]
    tracing::error!(?program, "MODELS RUN UNCONFINED: there is no sandbox for this system");
    Arc::new(Unconfined)
}
