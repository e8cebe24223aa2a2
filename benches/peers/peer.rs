//! Another engine, in a process that keeps the model loaded and answers lines of JSON: see `serve_llama.py`.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    process::Result,
    report::NAMES,
    work::{SHORT, Work},
};

pub struct Peer {
    pub name: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Whether it runs several prompts at once, and long ones.
    takes_all: bool,
}

impl Peer {
    /// llama.cpp, in a Python that has the package llama-cpp-python.
    pub fn llama_cpp(python: &OsStr, path: &Path, threads: usize, int8_cache: bool) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/serve_llama.py");
        let mut command = Command::new(python);
        command.arg(script).arg(path).arg(threads.to_string()).args(int8_cache.then_some("--int8-cache"));
        Self::start(NAMES[1], command, true)
    }

    /// candle-transformers, in this program once more: its threads look for work for a while after they had some. It
    /// packs no sequences, and long prompts take it minutes.
    pub fn candle(path: &Path, threads: usize) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--serve-candle").arg(path).env("RAYON_NUM_THREADS", threads.to_string());
        Self::start(NAMES[2], command, false)
    }

    fn start(name: &'static str, mut command: Command, takes_all: bool) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (input, output) = input.zip(output).ok_or("the process has no pipes")?;
        let mut peer = Self { name, process, input, output: BufReader::new(output), takes_all };
        peer.read()?;
        Ok(peer)
    }

    /// Resident memory, minus the memory of the process without the model.
    pub fn bytes(&mut self) -> Result<f64> {
        self.ask(&json!("resident"), "bytes")
    }

    /// Tokens per second; `None` for work that the peer does not run.
    pub fn run(&mut self, work: &Work) -> Result<Option<f64>> {
        let prompts: Vec<_> = work.prompts.iter().map(|prompt| &prompt.tokens).collect();
        let long = prompts[0].len() > SHORT;
        if !self.takes_all && (long || prompts.len() > 1) {
            return Ok(None);
        }
        let request = json!({ "prompts": prompts, "generate": work.generate, "keep": long });
        let (field, of_each) = match work.generate {
            0 => ("prefill_seconds", prompts[0].len()),
            generate => ("decode_seconds", generate),
        };
        Ok(Some((prompts.len() * of_each) as f64 / self.ask(&request, field)?))
    }

    fn ask(&mut self, request: &Value, field: &str) -> Result<f64> {
        writeln!(self.input, "{request}")?;
        let answer = self.read()?;
        answer[field].as_f64().ok_or_else(|| format!("{} answered {answer}", self.name).into())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("its process has ended".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
