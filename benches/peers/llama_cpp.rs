//! llama.cpp, in a process of its own that keeps the model loaded.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use super::{support::Result, work::Work};

pub struct LlamaCpp {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl LlamaCpp {
    /// Starts `python`, which has the package llama-cpp-python.
    pub fn load(python: &OsStr, path: &Path, threads: usize) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/serve_llama.py");
        let mut command = Command::new(python);
        command.arg(script).arg(path).arg(threads.to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (input, output) = input.zip(output).ok_or("the process has no pipes")?;
        let mut peer = Self { process, input, output: BufReader::new(output) };
        peer.read()?;
        Ok(peer)
    }

    /// Memory beyond that of the process without the model.
    pub fn bytes(&mut self) -> Result<f64> {
        self.ask(&json!("resident"), "bytes")
    }

    /// Tokens per second.
    pub fn run(&mut self, work: &Work) -> Result<f64> {
        let prompts: Vec<_> = work.prompts.iter().map(|prompt| &prompt.tokens).collect();
        let request = json!({ "prompts": prompts, "generate": work.generate, "keep": prompts[0].len() > 512 });
        let tokens = |of_each: usize| (prompts.len() * of_each) as f64;
        match work.generate {
            0 => Ok(tokens(prompts[0].len()) / self.ask(&request, "prefill_seconds")?),
            generate => Ok(tokens(generate) / self.ask(&request, "decode_seconds")?),
        }
    }

    fn ask(&mut self, request: &Value, field: &str) -> Result<f64> {
        writeln!(self.input, "{request}")?;
        let answer = self.read()?;
        answer[field].as_f64().ok_or_else(|| format!("llama.cpp answered {answer}").into())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the process of llama.cpp has ended".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
