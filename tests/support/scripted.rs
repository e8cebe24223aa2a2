//! Scripted models for the tests of services, and waiting for the stats of a model.
#![allow(dead_code, reason = "each package that includes this file uses some of it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    time::Duration,
};

use tokenflow::{ModelStats, TextModel, testing::ScriptedModel};
use tokio::time::timeout;

/// A model with long answers that takes a millisecond for each pass.
pub fn talkative() -> ScriptedModel {
    ScriptedModel::new(|_| "and so on ".repeat(2000)).on_pass(|_| std::thread::sleep(Duration::from_millis(1)))
}

/// A model with long answers that blocks in its 50th pass until [`Hold`] is dropped.
pub fn held_model() -> (ScriptedModel, Hold) {
    let (release, released) = mpsc::channel::<()>();
    let reached = Arc::new(AtomicBool::new(false));
    let hold = Hold { reached: reached.clone(), _release: release };
    let mut passes = 0;
    let model = ScriptedModel::new(|_| "and so on ".repeat(2000)).on_pass(move |_| {
        passes += 1;
        if passes == 50 {
            reached.store(true, Ordering::SeqCst);
            let _ = released.recv();
        }
    });
    (model, hold)
}

/// Blocks a model; dropping it lets the model go on.
pub struct Hold {
    reached: Arc<AtomicBool>,
    _release: Sender<()>,
}

impl Hold {
    /// Waits until the model is blocked.
    pub async fn reached(&self) {
        while !self.reached.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Waits until the stats of a model satisfy a condition, and returns them.
pub async fn until(model: &dyn TextModel, wanted: impl Fn(ModelStats) -> bool) -> ModelStats {
    let reached = timeout(Duration::from_secs(10), async {
        while !wanted(model.stats()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(reached.await.is_ok(), "{:?}", model.stats());
    model.stats()
}
