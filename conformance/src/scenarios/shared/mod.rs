//! What scenarios of several groups use: collecting and comparing messages, publishing many, times and locks.

mod collecting;
mod cut_points;
mod dead_letters;
mod delays;
mod handlers;
mod key_order;
mod publishing;
mod timing;

pub(crate) use self::{
    collecting::{expect_equal, expect_same, take_rest, take_rest_while, take_rest_with},
    cut_points::{CutPoint, allow_lock_lost, check_cut, next_of_either, queue_through},
    dead_letters::{dead_letter_all, dead_letter_next, full_envelope},
    delays::{ExpectedDelay, expect_all, timing_slack},
    handlers::{GoalCounter, HandlerLog, wait_until},
    key_order::{KeyOrderLog, consume_with_all, first_numbers_of, keyed, numbers_of, submit_in_order},
    publishing::{publish_each, publish_until, stored_messages},
    timing::{SETTLED_QUEUE_AGE, lifetime, long_lock, not_renewing, roomy_delay, short_lock, short_locked, wait_past},
};
