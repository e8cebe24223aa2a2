//! Attention maps of a text: `cargo run --release --example inspect -- --help`

use tokenflow::{InspectConfig, Inspection, LoadConfig, load_trainable};
use tokenflow_examples::{Args, Picture, Result, Usage};

const USAGE: Usage = Usage {
    about: "Shows the attention of a model over a TEXT.\n\n\
            Prints for each layer the entropy of its attention and the token that the last token attends to most, and\n\
            draws the weights of all heads to attention.svg: a row of maps for each layer, a map for each head. In a\n\
            map there is a row for each query and a column for each key.",
    command: "cargo run --release --example inspect --",
    words: "[TEXT]",
    model: true,
    options: &[],
};

const TEXT: &str = "The keys to the cabinet are on the table, because the cat that sleeps there likes them.";

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let model = load_trainable(args.model().await?, LoadConfig::new()).await?;
    let inspector = model.as_attention_inspector().ok_or("this model has no attention to inspect")?;
    let seen = inspector.inspect(args.text().unwrap_or(TEXT), InspectConfig::new().attention(true)).await?;

    println!("layer  entropy  most attended by the last token");
    for (layer, heads) in seen.attention.iter().enumerate() {
        let last: Vec<&[f32]> = heads.iter().map(|weights| &weights[weights.len() - seen.tokens.len()..]).collect();
        let entropy: f32 = last.iter().map(|row| entropy(row)).sum::<f32>() / last.len() as f32;
        let sum = |token: usize| last.iter().map(|row| row[token]).sum::<f32>();
        let most = (0..seen.tokens.len()).max_by(|a, b| sum(*a).total_cmp(&sum(*b))).unwrap_or(0);
        println!("{layer:>5}  {entropy:>7.3}  {:?} (token {most})", model.decode(&seen.tokens[most..=most])?);
    }
    draw(&seen).save("attention.svg")?;
    println!("attention.svg shows all {} heads", seen.attention.iter().map(Vec::len).sum::<usize>());
    model.close().await?;
    Ok(())
}

/// The entropy of a distribution, in nats.
fn entropy(weights: &[f32]) -> f32 {
    weights.iter().filter(|weight| **weight > 0.0).map(|weight| -weight * weight.ln()).sum()
}

/// A row of maps for each layer.
fn draw(seen: &Inspection) -> Picture {
    const CELL: usize = 3;
    const GAP: usize = 6;
    const LEFT: usize = 70;
    const TOP: usize = 40;
    /// Shades of a weight.
    const SHADES: usize = 10;
    let (tokens, snapshot) = (seen.tokens.len(), &seen.snapshot);
    let map = tokens * CELL + GAP;
    let (width, height) = (LEFT + snapshot.num_query_heads * map, TOP + snapshot.num_layers * map);
    let mut picture = Picture::new(width as f64, height as f64);
    let title =
        format!("Attention of {}, {tokens} tokens: a row for each query, a column for each key", snapshot.architecture);
    picture.text(4.0, 14.0, "start", &title);
    for head in 0..snapshot.num_query_heads {
        picture.text((LEFT + head * map + map / 2) as f64, TOP as f64 - 8.0, "middle", &format!("head {head}"));
    }
    for (layer, heads) in seen.attention.iter().enumerate() {
        picture.text(LEFT as f64 - 8.0, (TOP + layer * map + map / 2) as f64, "end", &format!("layer {layer}"));
        for (head, weights) in heads.iter().enumerate() {
            // The square root makes small weights visible.
            let shade = |weight: f32| (weight.sqrt() * SHADES as f32).round() as usize;
            for wanted in 1..=SHADES {
                let cells = (0..weights.len()).filter(|i| shade(weights[*i]) == wanted);
                let corners =
                    cells.map(|i| (LEFT + head * map + i % tokens * CELL, TOP + layer * map + i / tokens * CELL));
                let corners = corners.map(|(x, y)| (x as f64, y as f64));
                picture.squares(corners, CELL as f64, ("#1f4fd8", wanted as f64 / SHADES as f64));
            }
        }
    }
    picture
}
