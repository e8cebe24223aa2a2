//! Memory of the process.

#![allow(unsafe_code, reason = "a call of glibc")]

/// Gives freed memory back to the system. glibc keeps it for each thread otherwise, and work that is done once, such as
/// loading and training, has threads of its own.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
