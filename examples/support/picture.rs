use std::{fmt::Write, fs, io, path::Path};

/// A picture in SVG, which every browser shows.
pub struct Picture {
    body: String,
    width: f64,
    height: f64,
}

impl Picture {
    /// A white picture, in pixels.
    pub fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    /// A text, which begins, is centered or ends at `x`: `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!("<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}'>{text}</text>"));
    }

    /// A line through points.
    pub fn line(&mut self, points: impl IntoIterator<Item = (f64, f64)>, color: &str) {
        let points: Vec<String> = points.into_iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!("<polyline points='{}' fill='none' stroke='{color}'/>", points.join(" ")));
    }

    /// Squares of one color.
    pub fn squares(&mut self, corners: impl IntoIterator<Item = (f64, f64)>, size: f64, (color, opacity): (&str, f64)) {
        let square = |(x, y)| format!("M{x} {y}h{size}v{size}h-{size}z");
        let path: String = corners.into_iter().map(square).collect();
        self.add(format_args!("<path d='{path}' fill='{color}' fill-opacity='{opacity:.2}'/>"));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let Self { body, width, height } = self;
        let head = format!("<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'");
        let style = "font-family='sans-serif' font-size='12'";
        fs::write(path, format!("{head} {style}>\n<rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"))
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }
}
