//! What Redis must do as one: a script runs to its end with nothing in between.

use redis::Pipeline;

/// The consumer group of every stream; the scripts know it by the same name.
pub(crate) const GROUP: &str = "polybus";

/// Claims what nobody holds any more, then reads what is new. ARGV: consumer, lock in ms, how many.
pub(crate) const TAKE: &str = "
local taken = {}
for _, p in ipairs(redis.call('XPENDING', KEYS[1], 'polybus', 'IDLE', ARGV[2], '-', '+', ARGV[3])) do
    for _, e in ipairs(redis.call('XCLAIM', KEYS[1], 'polybus', ARGV[1], ARGV[2], p[1])) do
        taken[#taken + 1] = {e[1], p[4] + 1, e[2]}
    end
end
local room = tonumber(ARGV[3]) - #taken
local new = room > 0 and redis.call('XREADGROUP', 'GROUP', 'polybus', ARGV[1], 'COUNT', room, 'STREAMS', KEYS[1], '>')
for _, e in ipairs(new and new[1][2] or {}) do taken[#taken + 1] = {e[1], 1, e[2]} end
return taken";

/// Settles an entry if this very delivery of it is held. KEYS[2]: where a copy goes. ARGV: consumer, entry, delivery,
/// how, the copy's fields.
pub(crate) const SETTLE: &str = "
local held = redis.pcall('XPENDING', KEYS[1], 'polybus', ARGV[2], ARGV[2], 1)
local p = not held.err and held[1]
if not p or p[2] ~= ARGV[1] or p[4] ~= tonumber(ARGV[3]) then return redis.error_reply('LOCKLOST no longer held') end
if ARGV[4] == 'extend' then
    redis.call('XCLAIM', KEYS[1], 'polybus', ARGV[1], 0, ARGV[2], 'JUSTID')
elseif ARGV[4] == 'release' or ARGV[4] == 'give-back' then
    local count = ARGV[4] == 'release' and p[4] or p[4] - 1
    redis.call('XCLAIM', KEYS[1], 'polybus', '-', 0, ARGV[2], 'IDLE', 1e10, 'RETRYCOUNT', count, 'JUSTID')
else
    -- The copy first: where it cannot be stored, the original stays.
    if ARGV[4] == 'move' and not redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', unpack(ARGV, 5)) then
        return redis.error_reply('NOGROUP no stream for the copy')
    end
    redis.call('XACK', KEYS[1], 'polybus', ARGV[2])
    redis.call('XDEL', KEYS[1], ARGV[2])
end
return 1";

/// Gives back all that a consumer holds, and forgets the consumer. ARGV: consumer.
pub(crate) const LEAVE: &str = "
repeat
    local held = redis.pcall('XPENDING', KEYS[1], 'polybus', '-', '+', 1000, ARGV[1])
    -- The stream was deleted, and nothing is held.
    if held.err then return 0 end
    for _, p in ipairs(held) do
        redis.call('XCLAIM', KEYS[1], 'polybus', '-', 0, p[1], 'IDLE', 1e10, 'RETRYCOUNT', p[4], 'JUSTID')
    end
until #held < 1000
return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'polybus', ARGV[1])";

/// Adds a call of a script for this consumer; further arguments may follow.
pub(crate) fn add<'a>(commands: &'a mut Pipeline, script: &str, keys: [&str; 2], consumer: &str) -> &'a mut Pipeline {
    commands.cmd("EVAL").arg(script).arg(keys.len()).arg(&keys[..]).arg(consumer)
}
