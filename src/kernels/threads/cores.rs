//! The number of cores.

use std::{collections::HashSet, thread};

/// The physical cores that this process may use. Two threads on one core gain little when both compute.
pub fn physical_cores() -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from);
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()
    };
    let cores: HashSet<String> = (0..).map_while(siblings).collect();
    if cores.is_empty() { available } else { available.min(cores.len()) }
}
