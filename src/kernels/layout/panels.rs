//! Micro-panels: operands of products as the inner loops read them, 16 lanes wide, after the packed micro-panels of
//! [BLIS](https://doi.org/10.1145/2764454).
//!
//! A lane sums its products one by one in their order, so a result depends neither on the lanes beside it nor on the number of
//! lanes that a machine's registers have.

use bytemuck::Zeroable;

use crate::kernels::{Isa, memory::prefetch::Prefetcher};

/// Columns of a panel.
pub const LANES: usize = 16;

/// What panels are made of. All bits are values of it.
pub trait PanelElement: Copy + Send + Sync + Zeroable + 'static {
    /// What a step is multiplied by.
    type Factor: Copy;
    /// What the products of a lane add up to.
    type Sum: Copy + Zeroable;
    /// Those that one step has in a panel.
    const STEP_LEN: usize;
    /// Adds to the sums, and asks for what is `ahead` meanwhile.
    fn add_product(
        product: &PanelProduct<'_, Self>,
        sums: Accumulators<'_, Self::Sum>,
        ahead: &mut Prefetcher<'_>,
        isa: Isa,
    );
}

/// Rows of factors, each with all panels: sums of `factors[row][step] * panels[panel][step][lane]`.
pub struct PanelProduct<'a, T: PanelElement> {
    /// Row `r` is what begins at `r * factor_stride`: a factor for each step.
    pub factors: &'a [T::Factor],
    pub factor_stride: usize,
    pub rows: usize,
    pub panels: Panels<'a, T>,
    /// Steps in each piece of a panel.
    pub steps: usize,
    /// From one step of a panel to the next.
    pub panel_stride: usize,
}

/// Where panels are. Each step has `STEP_LEN` elements there.
pub enum Panels<'a, T> {
    /// Each has a place of its own.
    Apart(&'a [&'a [T]]),
    /// So many side by side, in pieces that have some of the steps each.
    Beside(usize, &'a [&'a [T]]),
}

impl<T: PanelElement> Panels<'_, T> {
    pub fn count(&self) -> usize {
        match self {
            Self::Apart(panels) => panels.len(),
            Self::Beside(count, _) => *count,
        }
    }

    /// Pieces of each panel.
    pub fn pieces(&self) -> usize {
        match self {
            Self::Apart(_) => 1,
            Self::Beside(_, pieces) => pieces.len(),
        }
    }

    /// Where a piece of a panel begins.
    #[inline(always)]
    pub fn start(&self, piece: usize, panel: usize) -> &[T] {
        match self {
            Self::Apart(panels) => panels[panel],
            Self::Beside(_, pieces) => &pieces[piece][panel * T::STEP_LEN..],
        }
    }
}

/// Where sums go: those of row `r` and panel `p` are at `r * stride + p * LANES`.
pub struct Accumulators<'a, S> {
    pub sums: &'a mut [S],
    pub stride: usize,
    /// Whether they are added to what is there, or take its place.
    pub add: bool,
}

impl<S: Copy + Zeroable> Accumulators<'_, S> {
    /// Makes zeros of those that the sums of a product take the place of.
    pub fn begin<T: PanelElement>(&mut self, product: &PanelProduct<'_, T>) {
        if !self.add {
            let rows = self.sums.chunks_mut(self.stride).take(product.rows);
            rows.for_each(|row| row[..product.panels.count() * LANES].fill(S::zeroed()));
        }
    }
}

impl<T: PanelElement> PanelProduct<'_, T> {
    /// Adds to `sums`, where those of row `r` and panel `p` are at `r * stride + p * LANES`.
    pub fn add_to(&self, sums: &mut [T::Sum], stride: usize, isa: Isa) {
        self.write(Accumulators { sums, stride, add: true }, &mut Prefetcher::idle(), isa);
    }

    /// Writes the sums. Meanwhile memory is asked for: a factor times a step of a panel is a unit of work.
    pub fn write(&self, mut sums: Accumulators<'_, T::Sum>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        if self.rows > 0 && self.steps > 0 && self.panels.count() > 0 && self.panels.pieces() > 0 {
            T::add_product(self, sums, ahead, isa);
        } else {
            sums.begin(self);
        }
    }

    /// Calls `add` with each row and panel, and with the factor and what the panel has of each of their steps in turn.
    pub fn for_each_step(&self, mut add: impl FnMut(usize, usize, &T::Factor, &[T])) {
        for row in 0..self.rows {
            let factors = &self.factors[row * self.factor_stride..][..self.panels.pieces() * self.steps];
            for (piece, factors) in factors.chunks(self.steps).enumerate() {
                for panel in 0..self.panels.count() {
                    let elements = self.panels.start(piece, panel);
                    for (step, factor) in factors.iter().enumerate() {
                        add(row, panel, factor, &elements[step * self.panel_stride..][..T::STEP_LEN]);
                    }
                }
            }
        }
    }
}
