//! Scripted models for the tests of services, and waiting for a model's figures.

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

/// A model that takes a millisecond for each step and speaks for long.
pub fn talkative() -> ScriptedModel {
    ScriptedModel::new(|_| "and so on ".repeat(2000)).on_pass(|_| std::thread::sleep(Duration::from_millis(1)))
}

/// A scripted model that speaks for long, and is held in its 50th pass.
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

/// Lets the model go on when it is dropped.
pub struct Hold {
    reached: Arc<AtomicBool>,
    _release: Sender<()>,
}

impl Hold {
    pub async fn reached(&self) {
        while !self.reached.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub async fn until(model: &dyn TextModel, wanted: impl Fn(ModelStats) -> bool) -> ModelStats {
    let reached = timeout(Duration::from_secs(10), async {
        while !wanted(model.stats()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(reached.await.is_ok(), "{:?}", model.stats());
    model.stats()
}
