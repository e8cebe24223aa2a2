//! tokenflow beside llama.cpp and candle-transformers: `cargo bench --bench peers -- [OPTIONS] [MODEL ...]`
//!
//! See `benches/README.md`.

mod candle;
mod llama_cpp;
mod ours;
#[path = "../process/mod.rs"]
mod process;
mod report;
#[path = "../../examples/support/mod.rs"]
mod support;
mod work;

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

use candle::Candle;
use llama_cpp::LlamaCpp;
use ours::Ours;
use report::{NAMES, Report, Row, chart};
use serde_json::Value;
use support::Result;
use work::{Work, works};

struct Options {
    models: Vec<Model>,
    rounds: usize,
    /// Those that every engine computes with.
    threads: usize,
    /// Peers that are left out.
    without: Vec<String>,
    /// Where the figures and the chart go.
    out: PathBuf,
}

/// A model as tokenflow loads it, and as the peers do.
struct Model {
    path: PathBuf,
    gguf: Option<PathBuf>,
}

impl Model {
    /// `MODEL`, or `MODEL=FILE.gguf` if the peers take another file.
    fn parse(argument: &str) -> Self {
        match argument.split_once('=') {
            Some((path, gguf)) => Self { path: path.into(), gguf: Some(gguf.into()) },
            None => {
                let path = PathBuf::from(argument);
                Self { gguf: path.extension().is_some_and(|kind| kind == "gguf").then(|| path.clone()), path }
            }
        }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = parse().await?;
    fs::create_dir_all(&options.out)?;
    let mut reports = Vec::new();
    for model in &options.models {
        let report = compare(model, &options).await.map_err(|error| format!("{}: {error}", model.path.display()))?;
        report.print();
        reports.push(report);
        // What there is stays there if a later model fails.
        let figures: Vec<Value> = reports.iter().map(Report::json).collect();
        fs::write(options.out.join("peers.json"), serde_json::to_string_pretty(&figures)?)?;
        fs::write(options.out.join("peers.svg"), chart(&reports))?;
    }
    println!("\nfigures and a chart are in {}", options.out.display());
    Ok(())
}

async fn parse() -> Result<Options> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    let mut options = Options { models: Vec::new(), rounds: 5, threads, without: Vec::new(), out };
    let mut args = env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--threads" => options.threads = value()?.parse()?,
            "--without" => options.without.push(value()?),
            "--out" => options.out = value()?.into(),
            option if option.starts_with('-') => return Err(format!("unknown option {option}").into()),
            model => options.models.push(Model::parse(model)),
        }
    }
    if options.rounds == 0 {
        return Err("--rounds takes a number of at least 1".into());
    }
    if options.models.is_empty() {
        let path = support::smollm2_gguf().await?;
        options.models.push(Model { gguf: Some(path.clone()), path });
    }
    Ok(options)
}

/// All that run one model.
struct Engines {
    ours: Ours,
    llama_cpp: Option<LlamaCpp>,
    candle: Option<Candle>,
}

impl Engines {
    /// Runs one kind of work on each in turn.
    async fn run(&mut self, work: &Work, row: &mut Row) -> Result<()> {
        row.add(NAMES[0], self.ours.run(work).await?);
        if let Some(peer) = &mut self.llama_cpp {
            row.add(NAMES[1], peer.run(work)?);
        }
        if let Some(peer) = &mut self.candle
            && let Some(figure) = peer.run(work)?
        {
            row.add(NAMES[2], figure);
        }
        Ok(())
    }
}

async fn compare(model: &Model, options: &Options) -> Result<Report> {
    let ours = Ours::load(&model.path, options.threads).await?;
    let works = works(&*ours.model).await?;
    let mut memory = Row::new("memory for it", "MB");
    let last = works.last().ok_or("there is nothing to do")?;
    ours.run(last).await?;
    memory.add(NAMES[0], ours.bytes() / 1e6);
    let mut engines = Engines { ours, llama_cpp: start_llama_cpp(model, options), candle: None };
    if let Some(peer) = &mut engines.llama_cpp {
        peer.run(last)?;
        memory.add(NAMES[1], peer.bytes()? / 1e6);
    }
    engines.candle = load_candle(model, options);
    let mut rows: Vec<Row> = works.iter().map(|work| Row::new(&work.name, "tokens/s")).collect();
    for round in 0..=options.rounds {
        for (work, row) in works.iter().zip(&mut rows) {
            // The first round is for warming up.
            let mut unused = Row::new("", "");
            engines.run(work, if round == 0 { &mut unused } else { row }).await?;
        }
    }
    engines.ours.model.close().await?;
    if let [_, near, _, deep] = rows.as_slice() {
        rows.push(deep.relative_to(near));
    }
    memory.name = format!("memory after {}", last.name);
    rows.push(memory);
    Ok(Report { model: model.name(), rows })
}

/// If the variable `LLAMA_PYTHON` names a Python that has llama-cpp-python.
fn start_llama_cpp(model: &Model, options: &Options) -> Option<LlamaCpp> {
    let python = env::var_os("LLAMA_PYTHON")?;
    peer(NAMES[1], model, options, |gguf| LlamaCpp::load(&python, gguf, options.threads))
}

fn load_candle(model: &Model, options: &Options) -> Option<Candle> {
    peer(NAMES[2], model, options, Candle::load)
}

/// A peer of the model, if there is a file for it and it can load that.
fn peer<T>(name: &str, model: &Model, options: &Options, load: impl FnOnce(&Path) -> Result<T>) -> Option<T> {
    let gguf = model.gguf.as_ref().filter(|_| !options.without.iter().any(|without| without == name))?;
    load(gguf).inspect_err(|error| eprintln!("{name} does not take part with {}: {error}", gguf.display())).ok()
}
