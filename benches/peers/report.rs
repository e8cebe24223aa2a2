//! The figures of one model: a table, JSON, and a bar chart.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};

/// The order of the columns.
pub const NAMES: [&str; 3] = ["tokenflow", "llama.cpp", "candle"];

pub struct Report {
    pub model: String,
    pub rows: Vec<Row>,
}

/// One figure of each round, for each of [`NAMES`].
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    runs: BTreeMap<&'static str, Vec<f64>>,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, runs: BTreeMap::new() }
    }

    /// Adds a round's figure.
    pub fn add(&mut self, engine: &'static str, figure: f64) {
        self.runs.entry(engine).or_default().push(figure);
    }

    pub fn median(&self, engine: &str) -> Option<f64> {
        self.runs.get(engine).cloned().map(median)
    }

    /// The median ratio of tokenflow's figure to a peer's in the same round.
    pub fn times(&self, peer: &str) -> Option<f64> {
        let (ours, theirs) = (self.runs.get(NAMES[0])?, self.runs.get(peer)?);
        Some(median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()))
    }

    /// The ratio to another row, round by round.
    pub fn relative_to(&self, base: &Self) -> Self {
        let mut share = Self::new(format!("{}, of near the beginning", self.name), "%");
        for (engine, figures) in &self.runs {
            for (figure, base) in figures.iter().zip(base.runs.get(engine).into_iter().flatten()) {
                share.add(engine, 100.0 * figure / base);
            }
        }
        share
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[half] } else { (figures[half - 1] + figures[half]) / 2.0 }
}

impl Report {
    pub fn print(&self) {
        println!("\n{}\n{:<44} {:>20} {:>20} {:>20}", self.model, "", NAMES[0], NAMES[1], NAMES[2]);
        for row in &self.rows {
            let mut line = format!("{:<44}", format!("{}, {}", row.name, row.unit));
            for engine in NAMES {
                let cell = match (row.median(engine), row.times(engine)) {
                    (None, _) => "–".to_owned(),
                    (Some(figure), Some(times)) if engine != NAMES[0] => format!("{figure:.1} ({times:.2} x)"),
                    (Some(figure), _) => format!("{figure:.1}"),
                };
                // Writing to a string does not fail.
                let _ = write!(line, " {cell:>20}");
            }
            println!("{line}");
        }
    }

    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            let engines = NAMES.iter().filter_map(|engine| {
                let median = row.median(engine)?;
                let times = row.times(engine).filter(|_| *engine != NAMES[0]);
                let figures = json!({ "median": median, "runs": row.runs[engine], "tokenflow is times": times });
                Some(((*engine).to_owned(), figures))
            });
            json!({ "name": row.name, "unit": row.unit, "engines": engines.collect::<serde_json::Map<_, _>>() })
        };
        json!({ "model": self.model, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

const COLORS: [&str; 3] = ["#1f6feb", "#8b949e", "#d29922"];
const BAR: usize = 16;
const WIDEST: f64 = 380.0;

/// A bar chart of all figures in SVG, scaled by row.
pub fn chart(reports: &[Report]) -> String {
    let (mut bars, mut y) = (String::new(), 10);
    let text = |x: f64, y: usize, style: &str, text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        format!("<text x='{x}' y='{y}' {style}>{text}</text>\n")
    };
    for report in reports {
        y += 24;
        bars += &text(10.0, y, "font-weight='bold'", &report.model);
        for row in &report.rows {
            y += 12;
            bars += &text(10.0, y + BAR - 4, "", &format!("{}, {}", row.name, row.unit));
            let greatest = NAMES.iter().filter_map(|engine| row.median(engine)).fold(f64::MIN_POSITIVE, f64::max);
            for (engine, color) in NAMES.iter().zip(COLORS) {
                let Some(figure) = row.median(engine) else { continue };
                let width = WIDEST * figure / greatest;
                let height = BAR - 2;
                bars += &format!("<rect x='330' y='{y}' width='{width:.1}' height='{height}' fill='{color}'/>\n");
                bars += &text(335.0 + width, y + BAR - 4, "", &format!("{figure:.1} {engine}"));
                y += BAR;
            }
        }
    }
    let style = "font-family='sans-serif' font-size='12'";
    let head = format!("<svg xmlns='http://www.w3.org/2000/svg' width='860' height='{}' {style}>", y + 20);
    format!("{head}\n<rect width='100%' height='100%' fill='white'/>\n{bars}</svg>\n")
}
