//! What a faulty driver does wrongly, one type for each kind of fault.
//!
//! [`faulty_driver`] puts a driver around another one. Each call goes through a
//! [`FaultBehaviour`](faulty_driver::FaultBehaviour), which forwards it and changes one thing on the way.

pub(super) mod entities;
pub(super) mod faulty_driver;
pub(super) mod publish;
pub(super) mod receive;
pub(super) mod redrive;
pub(super) mod settle;
pub(super) mod strangers;
