//! What the operating system says of this process; its figures on Linux only, zeros elsewhere.
#![allow(dead_code, reason = "not every benchmark asks for everything")]

use std::{collections::HashSet, fs, thread, time::Duration};

/// Cores that this process may use: of threads that share one, only one is counted.
pub fn cores() -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from);
    let siblings =
        |cpu: usize| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    let cores: HashSet<String> = (0..).map_while(siblings).collect();
    if cores.is_empty() { available } else { available.min(cores.len()) }
}

/// Bytes of physical memory.
pub fn resident_bytes() -> usize {
    status("VmRSS:")
}

/// The most bytes of physical memory there were.
pub fn peak_bytes() -> usize {
    status("VmHWM:")
}

fn status(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Processor time used so far, by all threads.
pub fn cpu_time() -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses; user and system time are the fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}
