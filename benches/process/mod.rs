//! Memory and CPU time of this process (zeros but on Linux), and the arguments of a benchmark.
#![allow(dead_code, reason = "each benchmark uses a part")]

use std::{collections::HashSet, env, fs, path::Path, thread, time::Duration};

/// `Result` with any error.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// The arguments after `--`. Relative paths in them are of the repository, as in every other command: cargo runs
/// benchmarks in the folder of their package.
pub fn arguments() -> impl Iterator<Item = String> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let (Ok(current), Some(repository)) = (env::current_dir(), package.parent())
        && current == package
    {
        let _ = env::set_current_dir(repository);
    }
    env::args().skip(1).filter(|arg| arg != "--bench")
}

/// Physical cores that this process may use.
pub fn cores() -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from);
    let siblings =
        |cpu: usize| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    let cores: HashSet<String> = (0..).map_while(siblings).collect();
    if cores.is_empty() { available } else { available.min(cores.len()) }
}

/// Resident memory in bytes.
pub fn resident_bytes() -> usize {
    status("VmRSS:")
}

/// Peak resident memory in bytes.
pub fn peak_bytes() -> usize {
    status("VmHWM:")
}

fn status(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// CPU time of all threads so far.
pub fn cpu_time() -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15 are user and system time; the name in parentheses may hold spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}
