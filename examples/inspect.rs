//! Where a model looks: `cargo run --release --example inspect -- [--model PATH] [TEXT]`
//!
//! Prints for each layer how spread its attention is and what the last token attends to most, and draws the weights of all
//! heads to `attention.png`: a row of maps for each layer, a map for each head, a line for each token.

#[path = "support/mod.rs"]
mod support;

use plotters::prelude::*;
use tokenflow::{InspectConfig, Inspection, LoadConfig, load_trainable};

const TEXT: &str = "The keys to the cabinet are on the table, because the cat that sleeps there likes them.";

/// Pixels of a weight, and between maps.
const CELL: usize = 3;
const GAP: usize = 4;

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let model = load_trainable(args.model().await?, LoadConfig::new()).await?;
    let inspector = model.as_attention_inspector().ok_or("this model's attention cannot be read")?;
    let seen = inspector.inspect(args.text().unwrap_or(TEXT), InspectConfig::new().attention(true)).await?;

    println!("layer  entropy  the last token attends most to");
    for (layer, heads) in seen.attention.iter().enumerate() {
        let last: Vec<&[f32]> = heads.iter().map(|weights| &weights[weights.len() - seen.tokens.len()..]).collect();
        let entropy: f32 = last.iter().map(|row| entropy(row)).sum::<f32>() / last.len() as f32;
        let sum = |token: usize| last.iter().map(|row| row[token]).sum::<f32>();
        let most = (0..seen.tokens.len()).max_by(|a, b| sum(*a).total_cmp(&sum(*b))).unwrap_or(0);
        println!("{layer:>5}  {entropy:>7.3}  {:?} (token {most})", model.decode(&seen.tokens[most..=most])?);
    }
    draw(&seen, "attention.png")?;
    println!("attention.png has all {} heads", seen.attention.iter().map(Vec::len).sum::<usize>());
    model.close().await?;
    Ok(())
}

/// In nats.
fn entropy(weights: &[f32]) -> f32 {
    weights.iter().filter(|weight| **weight > 0.0).map(|weight| -weight * weight.ln()).sum()
}

fn draw(seen: &Inspection, path: &str) -> support::Result<()> {
    let (tokens, snapshot) = (seen.tokens.len(), &seen.snapshot);
    let map = tokens * CELL + GAP;
    let size = ((snapshot.num_query_heads * map + GAP) as u32, (snapshot.num_layers * map + GAP) as u32);
    let image = BitMapBackend::new(path, size).into_drawing_area();
    image.fill(&WHITE)?;
    for (layer, heads) in seen.attention.iter().enumerate() {
        for (head, weights) in heads.iter().enumerate() {
            for (i, weight) in weights.iter().enumerate() {
                let left = (GAP + head * map + i % tokens * CELL) as i32;
                let top = (GAP + layer * map + i / tokens * CELL) as i32;
                // The root lets small weights be seen.
                let color = BLUE.mix(f64::from(weight.sqrt()));
                let cell = [(left, top), (left + CELL as i32, top + CELL as i32)];
                image.draw(&Rectangle::new(cell, color.filled()))?;
            }
        }
    }
    image.present()?;
    Ok(())
}
