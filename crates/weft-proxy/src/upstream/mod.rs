// SPDX-License-Identifier: Apache-2.0
//! Whom we call: candidates, turn, ejection, retry budget, connections. Called by the request
//! phases and the TCP relay; knows no listener and no route.

pub mod adaptive;
pub mod ask;
pub mod breaker;
pub mod budget;
pub mod connect;
pub mod gate;
pub mod health;
pub mod outlier;
pub mod pick;
pub mod pool;
pub mod quota;
pub mod recent;
pub mod resolver;
