// SPDX-License-Identifier: Apache-2.0
//! What others show to prove who they are: certificates and requests for one, the agent's frames,
//! identities and tokens.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use weft_base::clock::Clock;
use weft_base::name::Label;
use weft_identity::uds::{FRAME_BYTES_MAX, SvidReply, SvidRequest, UdsError, read_frame};
use weft_identity::{Authority, Leaf, SpiffeId};
use weft_server::consul::fuzz;

/// The first byte says which.
pub fn any(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 6 {
        0 => frame::<SvidRequest>(bytes),
        1 => frame::<SvidReply>(bytes),
        2 => request(bytes),
        3 => certificate(bytes),
        4 => identity(bytes),
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                fuzz::token(text);
            }
        }
    }
}

/// A frame is taken whole, or not at all; what it says is the same when it is said again.
fn frame<T>(mut bytes: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let length = bytes.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
    let had = bytes.len();
    let polled = {
        let read = pin!(read_frame::<_, T>(&mut bytes));
        read.poll(&mut Context::from_waker(Waker::noop()))
    };
    let Poll::Ready(read) = polled else { panic!("bytes that are there are waited for") };
    let too_large = length.is_some_and(|length| length > FRAME_BYTES_MAX);
    assert_eq!(matches!(read, Err(UdsError::TooLarge(_))), too_large);
    let Ok(frame) = read else { return };
    assert_eq!(Some(had - bytes.len() - 4), length);
    let again = serde_json::to_vec(&frame).expect("a frame can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).ok().as_ref(), Some(&frame));
}

/// Whatever is asked for, the certificate names who asked, and nobody else.
fn request(bytes: &[u8]) {
    thread_local! {
        static AUTHORITY: Authority = {
            let dir = std::env::temp_dir().join(format!("weft-fuzz-{}", std::process::id()));
            let opened = Authority::open(&dir, None, &Clock::system()).expect("a directory");
            let _ = std::fs::remove_dir_all(dir);
            opened
        };
    }
    AUTHORITY.with(|authority| {
        let label = |text: &str| Label::new(text).expect("a label");
        let who = authority.trust_domain().workload(&label("shop"), &label("web"));
        let Ok(issued) = authority.sign(bytes, &who, Duration::from_secs(3600)) else { return };
        let leaf = issued.chain.first().map(Leaf::read).expect("a chain begins with a leaf");
        assert_eq!(leaf.map(|leaf| leaf.id), Ok(who));
    });
}

fn certificate(bytes: &[u8]) {
    let Ok(leaf) = Leaf::read(&bytes.into()) else { return };
    identity(leaf.id.as_str().as_bytes());
}

/// An identity is written in one way only, and its parts say all of it.
fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(id) = SpiffeId::new(text) else { return };
    assert_eq!(SpiffeId::new(id.as_str()).as_ref(), Ok(&id));
    assert!(id.is_member_of(&id.trust_domain()));
    assert_eq!(format!("{}{}", id.trust_domain().uri(), id.path()), id.as_str());
    assert!(!id.as_str().contains(['%', '?', '#', ' ', '\\', '@']) && !id.path().contains("//"));
    if let Some((namespace, account)) = id.workload() {
        assert_eq!((id.namespace(), id.service_account()), (Some(namespace), Some(account)));
    }
}
