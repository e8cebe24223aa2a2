//! A request from its call to its end, as every backend needs it: validation, admission, deadline and cancellation,
//! counters, and the fan-out of calls with many prompts. An [`Executor`] does the rest, in this process or elsewhere.

mod admission;
mod context;
mod deadline;
mod executor;
mod fan_out;
mod frontend;
mod limits;
mod state;
#[cfg(test)]
mod tests;
mod timings;

pub use admission::AdmissionQueue;
pub use context::RequestContext;
pub use deadline::{reached, unless_over};
pub use executor::{Executor, Request, Task};
pub use frontend::{Frontend, FrontendOptions};
pub use limits::{RequestLimits, TaskKind};
pub use state::ModelState;
pub use timings::{MemoryUse, RequestTimings, TokenCounts};
