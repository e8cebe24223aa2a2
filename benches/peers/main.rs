//! tokenflow beside llama.cpp and candle-transformers: `cargo bench --bench peers -- [OPTIONS] [MODEL ...]`
//!
//! See `benches/README.md`.

mod candle;
mod ours;
mod peer;
#[path = "../process/mod.rs"]
mod process;
mod report;
mod work;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use ours::Ours;
use peer::Peer;
use process::Result;
use report::{NAMES, Report, Row, chart};
use serde_json::Value;
use work::{Work, works};

struct Options {
    models: Vec<Model>,
    rounds: usize,
    threads: usize,
    /// Whether the KV cache is int8.
    int8_cache: bool,
    /// Excluded peers.
    without: Vec<String>,
    /// The folder of figures and chart.
    out: PathBuf,
}

/// A model in the form that tokenflow loads, and in the form that the peers load.
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
    if let [_, option, path] = env::args().collect::<Vec<_>>().as_slice()
        && option == "--serve-candle"
    {
        return candle::serve(path.as_ref());
    }
    let options = parse().await?;
    fs::create_dir_all(&options.out)?;
    let mut reports = Vec::new();
    for model in &options.models {
        // Later models reuse freed memory of the process, so only the first one can be measured.
        let weigh = reports.is_empty();
        let report =
            compare(model, &options, weigh).await.map_err(|error| format!("{}: {error}", model.path.display()))?;
        report.print();
        reports.push(report);
        // Written after each model, so that a later failure loses nothing.
        let figures: Vec<Value> = reports.iter().map(Report::json).collect();
        fs::write(options.out.join("peers.json"), serde_json::to_string_pretty(&figures)?)?;
        fs::write(options.out.join("peers.svg"), chart(&reports))?;
    }
    println!("\nfigures and a chart are in {}", options.out.display());
    Ok(())
}

async fn parse() -> Result<Options> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let mut options = Options {
        models: Vec::new(),
        rounds: 5,
        threads: process::cores(),
        int8_cache: false,
        without: Vec::new(),
        out,
    };
    let mut args = process::arguments();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--threads" => options.threads = value()?.parse()?,
            "--int8-cache" => options.int8_cache = true,
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
        let path = tokenflow_examples::smollm2_gguf().await?;
        options.models.push(Model { gguf: Some(path.clone()), path });
    }
    Ok(options)
}

/// The engines that run one model.
struct Engines {
    ours: Ours,
    peers: Vec<Peer>,
}

impl Engines {
    /// Runs one kind of work on each in turn.
    async fn run(&mut self, work: &Work, row: &mut Row) -> Result<()> {
        row.add(NAMES[0], self.ours.run(work).await?);
        for peer in &mut self.peers {
            if let Some(figure) = peer.run(work)? {
                row.add(peer.name, figure);
            }
        }
        Ok(())
    }

    /// Runs the deepest work, and takes the memory of each after it.
    async fn memory(&mut self, works: &[Work]) -> Result<Row> {
        let deepest = works.last().ok_or("there is nothing to do")?;
        let mut row = Row::new(format!("memory after {}", deepest.name), "MB");
        self.run(deepest, &mut Row::new("", "")).await?;
        row.add(NAMES[0], self.ours.bytes() / 1e6);
        for peer in &mut self.peers {
            row.add(peer.name, peer.bytes()? / 1e6);
        }
        Ok(row)
    }
}

/// `weigh`: takes memory, too.
async fn compare(model: &Model, options: &Options, weigh: bool) -> Result<Report> {
    let ours = Ours::load(&model.path, options.threads, options.int8_cache).await?;
    let mut engines = Engines { ours, peers: peers(model, options) };
    let works = works(&*engines.ours.model).await?;
    let memory = if weigh { Some(engines.memory(&works).await?) } else { None };
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
    rows.extend(memory);
    Ok(Report { model: model.name(), rows })
}

/// The peers that can run the model. llama.cpp is one if the variable `LLAMA_PYTHON` names a Python that has it.
fn peers(model: &Model, options: &Options) -> Vec<Peer> {
    let Some(gguf) = &model.gguf else { return Vec::new() };
    let asked = |name: &str| !options.without.iter().any(|without| without == name);
    let mut peers = Vec::new();
    if let Some(python) = env::var_os("LLAMA_PYTHON").filter(|_| asked(NAMES[1])) {
        peers.push(Peer::llama_cpp(&python, gguf, options.threads, options.int8_cache));
    }
    if asked(NAMES[2]) {
        peers.push(Peer::candle(gguf, options.threads));
    }
    let failed = |error: &_| eprintln!("a peer does not take part with {}: {error}", gguf.display());
    peers.into_iter().filter_map(|peer| peer.inspect_err(failed).ok()).collect()
}
