//! Downloading models from the Hugging Face Hub.
//!
//! Files are stored in the cache folder of the Hub's other tools, so that nothing is fetched twice. The HTTP client
//! takes proxies from the usual `*_PROXY` variables.

mod client;
mod download;
mod job;
mod progress;
mod range_client;
mod repository;

use std::time::Duration;

pub use client::Hub;
pub use progress::DownloadProgress;

/// Time limit for resolving the server's name, and again for connecting.
const CONNECT: Duration = Duration::from_secs(3);
/// Time limit for a download without a new byte.
const STALL: Duration = Duration::from_secs(30);
