// SPDX-License-Identifier: Apache-2.0
//! Power loss (F6b): at every sync of a run of commits the disk may hold any part of what was
//! written since the sync before, in any order, torn inside a write. Each such image must open,
//! hold every write acknowledged by then, and no half of a transaction.

use std::io::Error;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;
use weft_base::clock::Clock;
use weft_base::rng::Rng;

use super::super::{Opener, RedbStore};
use crate::{Op, Retention, Revision, Store, StoreError, Txn};

const TEAR: usize = 512;
const WRITES: u64 = 1_000;

/// What the platter holds, and what the drive has only promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter {
    durable: Vec<u8>,
    promised: Vec<(usize, Vec<u8>)>,
    /// What the program reads back: everything it wrote.
    seen: Vec<u8>,
    /// Images kept at syncs, each with how many writes were acknowledged before it.
    images: Vec<(u64, Vec<u8>)>,
    acknowledged: u64,
    /// Whether images are kept at all.
    keep: bool,
    /// Every write and sync fails.
    pub broken: bool,
}

#[derive(Debug)]
struct Drive {
    platter: Arc<Mutex<Platter>>,
    rng: Mutex<Rng>,
}

impl Platter {
    /// The power is cut now: what is left is all that there is.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        let image = self.cut(rng);
        *self = Self { durable: image.clone(), seen: image, keep: self.keep, ..Self::default() };
    }

    /// One thing a power cut at this moment could leave.
    fn cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut image = self.durable.clone();
        image.resize(image.len().max(self.seen.len()), 0);
        let mut pieces: Vec<(usize, &[u8])> = Vec::new();
        for (at, data) in &self.promised {
            let offsets = (0..data.len()).step_by(TEAR);
            pieces.extend(offsets.map(|i| (at + i, &data[i..data.len().min(i + TEAR)])));
        }
        // All kept, none kept, or each by chance; later writes of a place win or lose by chance.
        let odds = [0, 1, 2, 9, 10][usize::try_from(rng.below(5)).unwrap()];
        for i in (1..pieces.len()).rev() {
            if rng.below(2) == 0 {
                pieces.swap(i, usize::try_from(rng.below(i as u64 + 1)).unwrap());
            }
        }
        for (at, data) in pieces {
            if rng.below(10) < odds {
                image[at..at + data.len()].copy_from_slice(data);
            }
        }
        image
    }
}

impl StorageBackend for Drive {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.platter.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let (platter, at) = (self.platter.lock().unwrap(), usize::try_from(offset).unwrap());
        let data = platter.seen.get(at..at + out.len()).ok_or(Error::other("beyond the end"))?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        let len = usize::try_from(len).unwrap();
        self.platter.lock().unwrap().seen.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), Error> {
        let mut platter = self.platter.lock().unwrap();
        if platter.broken {
            return Err(Error::other("the drive is broken"));
        }
        if platter.keep {
            let image = platter.cut(&mut self.rng.lock().unwrap());
            let acknowledged = platter.acknowledged;
            platter.images.push((acknowledged, image));
        }
        platter.durable = platter.seen.clone();
        platter.promised.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let (mut platter, at) = (self.platter.lock().unwrap(), usize::try_from(offset).unwrap());
        if platter.broken {
            return Err(Error::other("the drive is broken"));
        }
        platter.seen[at..at + data.len()].copy_from_slice(data);
        platter.promised.push((at, data.to_vec()));
        Ok(())
    }
}

fn open(platter: &Arc<Mutex<Platter>>, seed: u64) -> Result<RedbStore, StoreError> {
    open_on(platter, seed, Clock::system())
}

pub(super) fn open_on(
    platter: &Arc<Mutex<Platter>>,
    seed: u64,
    clock: Clock,
) -> Result<RedbStore, StoreError> {
    let platter = platter.clone();
    let opener: Opener = Box::new(move || {
        let drive = Drive { platter: platter.clone(), rng: Mutex::new(Rng::seeded(seed)) };
        let mut builder = redb::Database::builder();
        builder.set_cache_size(1 << 20);
        builder.create_with_backend(drive).map_err(StoreError::storage)
    });
    RedbStore::open_with(opener, clock, Retention::default())
}

/// Write n: a pair of keys that must stay equal, and now and then an old pair deleted.
fn write(n: u64) -> Txn {
    let value = format!("{n}-{}", "v".repeat(usize::try_from(n % 700).unwrap()));
    let pair = ["l", "r"].map(|side| Op::put(format!("/{side}/{:04}", n % 40), value.clone()));
    Txn::of(pair)
        .then(Op::delete(format!("/d/{:04}", n % 7)))
        .then(Op::put(format!("/d/{:04}", (n + 3) % 7), n.to_string()))
}

#[tokio::test]
async fn a_power_cut_at_any_sync_leaves_all_that_was_acknowledged() {
    let platter = Arc::new(Mutex::new(Platter { keep: true, ..Platter::default() }));
    let store = open(&platter, 5).unwrap();
    let first = store.barrier().await.unwrap();
    let mut revisions = vec![first];
    let (mut syncs, mut younger) = (0, 0);
    for n in 1..=WRITES {
        revisions.push(store.txn(write(n)).await.unwrap().revision);
        let images = {
            let mut platter = platter.lock().unwrap();
            platter.acknowledged = n;
            std::mem::take(&mut platter.images)
        };
        for (acknowledged, image) in images.into_iter().filter(|_| n > 1) {
            let last = judged(image, &revisions).await;
            assert!(last >= acknowledged, "write {acknowledged} is lost, {last} is the last");
            younger += u64::from(last > acknowledged);
            syncs += 1;
        }
    }
    assert!(syncs >= WRITES - 1, "{syncs} syncs for {WRITES} writes");
    assert!(younger > 0, "no image was cut after the commit but before the acknowledgement");
}

/// Which write is the last in an image, of which nothing else is missing.
async fn judged(image: Vec<u8>, revisions: &[Revision]) -> u64 {
    let seen = Platter { durable: image.clone(), seen: image, ..Platter::default() };
    let reopened = open(&Arc::new(Mutex::new(seen)), 6).expect("every image opens");
    let page = reopened.range("/", 0, None).await.unwrap();
    let newest = page.entries.iter().map(|(_, e)| e.modified).max().unwrap_or(revisions[0]);
    let last = revisions.iter().rposition(|r| *r == newest).expect("a revision of the run") as u64;
    assert_eq!(contents(&page), expected(last), "exactly the first {last} writes");
    assert!(reopened.barrier().await.unwrap() >= newest);
    last
}

fn contents(page: &crate::Page) -> Vec<(String, Vec<u8>)> {
    page.entries.iter().map(|(k, e)| (k.to_string(), e.value.to_vec())).collect()
}

fn expected(writes: u64) -> Vec<(String, Vec<u8>)> {
    let mut map = std::collections::BTreeMap::new();
    for op in (1..=writes).flat_map(|n| write(n).ops) {
        match op {
            Op::Put { key, value, .. } => drop(map.insert(key.to_string(), value.to_vec())),
            op => drop(map.remove(&**op.key())),
        }
    }
    map.into_iter().collect()
}
