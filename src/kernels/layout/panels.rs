//! Micro-panels: operands of products as the inner loops read them, 16 lanes wide, after the packed micro-panels of
//! [BLIS](https://doi.org/10.1145/2764454).
//!
//! A lane sums its products one by one in their order, so a result depends neither on the lanes beside it nor on the
//! number of lanes that a machine's registers have.

use bytemuck::Zeroable;

use crate::kernels::{Isa, memory::prefetch::Prefetcher};

/// Lanes of a panel: columns of the product.
pub const LANES: usize = 16;

/// A type of panels' elements. All bit patterns are values of it.
pub trait PanelElement: Copy + Send + Sync + Zeroable + 'static {
    /// The type of a row's factor for one step.
    type Factor: Copy;
    /// The type of a lane's sum.
    type Sum: Copy + Zeroable;
    /// Elements of one step of a panel.
    const STEP_LEN: usize;
    /// Computes a product with the instructions of `isa`, and advances `ahead` meanwhile.
    fn add_product(
        product: &PanelProduct<'_, Self>,
        sums: Accumulators<'_, Self::Sum>,
        ahead: &mut Prefetcher<'_>,
        isa: Isa,
    );
}

/// A product: `sums[row][panel][lane] = Σ factors[row][step] * panels[panel][step][lane]`.
pub struct PanelProduct<'a, T: PanelElement> {
    /// A factor for each step. Row `r` begins at `r * factor_stride`.
    pub factors: &'a [T::Factor],
    pub factor_stride: usize,
    pub rows: usize,
    pub panels: Panels<'a, T>,
    /// Steps of each piece of a panel.
    pub steps: usize,
    /// Elements from one step of a panel to the next.
    pub panel_stride: usize,
}

/// The panels of a product.
pub enum Panels<'a, T> {
    /// A slice for each panel.
    Apart(&'a [&'a [T]]),
    /// So many panels side by side, in pieces of some steps each.
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

    /// A piece of a panel, and the elements after it.
    #[inline(always)]
    pub fn start(&self, piece: usize, panel: usize) -> &[T] {
        match self {
            Self::Apart(panels) => panels[panel],
            Self::Beside(_, pieces) => &pieces[piece][panel * T::STEP_LEN..],
        }
    }
}

/// The sums of a product. Row `r` and panel `p` have theirs at `r * stride + p * LANES`.
pub struct Accumulators<'a, S> {
    pub sums: &'a mut [S],
    pub stride: usize,
    /// Whether products are added to the values of `sums` or replace them.
    pub add: bool,
}

impl<S: Copy + Zeroable> Accumulators<'_, S> {
    /// Zeros the values that the sums of a product replace.
    pub fn begin<T: PanelElement>(&mut self, product: &PanelProduct<'_, T>) {
        if !self.add {
            let rows = self.sums.chunks_mut(self.stride).take(product.rows);
            rows.for_each(|row| row[..product.panels.count() * LANES].fill(S::zeroed()));
        }
    }
}

impl<T: PanelElement> PanelProduct<'_, T> {
    /// Adds the product to `sums`, laid out as in [`Accumulators`].
    pub fn add_to(&self, sums: &mut [T::Sum], stride: usize, isa: Isa) {
        self.write(Accumulators { sums, stride, add: true }, &mut Prefetcher::idle(), isa);
    }

    /// Computes the sums. `ahead` advances by one unit of work for each factor times a step of a panel.
    pub fn write(&self, mut sums: Accumulators<'_, T::Sum>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        if self.rows > 0 && self.steps > 0 && self.panels.count() > 0 && self.panels.pieces() > 0 {
            T::add_product(self, sums, ahead, isa);
        } else {
            sums.begin(self);
        }
    }

    /// Calls `add(row, panel, factor, elements)` for every step of every row and panel, steps innermost.
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
