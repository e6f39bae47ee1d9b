//! Three files whose claims cannot be redeemed: altered, missing, and pointing elsewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use polybus::Envelope;
use polybus_claims::Claims;

use super::{Failure, files::File, reference};

pub struct Broken {
    messages: Vec<Envelope>,
    /// What lies in the folder, and what ought to.
    repairs: Vec<(PathBuf, Vec<u8>)>,
}

impl Broken {
    pub async fn make(claims: &Claims, folder: &Path, seed: u64, first: u32) -> Result<Self, Failure> {
        let (mut messages, mut repairs) = (Vec::new(), Vec::new());
        for n in 0..3 {
            // The second file of any seed is a large one.
            let message = claims.check_in(File::new(seed ^ u64::from(first + n), 1).message()).await?;
            let path = folder.join(reference(&message)?);
            let good = fs::read(&path)?;
            messages.push(message);
            repairs.push((path, good));
        }
        let (altered, good) = &repairs[0];
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(altered, bad)?;
        fs::remove_file(&repairs[1].0)?;
        // Nobody finds this one any more: the sweep at the end does.
        repairs.truncate(2);
        let elsewhere = messages.remove(2).edit(|fields| {
            fields.extensions.remove("claimref");
            fields.extensions.push("claimref", "../../etc/passwd");
        });
        messages.push(elsewhere);
        Ok(Self { messages, repairs })
    }

    pub fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    pub fn messages(&self) -> impl Iterator<Item = &Envelope> {
        self.messages.iter()
    }

    /// Puts the payloads back, as somebody does who has a backup.
    pub fn repair(&self) -> Result<(), Failure> {
        self.repairs.iter().try_for_each(|(path, good)| Ok(fs::write(path, good)?))
    }

    /// The ids of those that are repaired.
    pub fn repaired(&self) -> Vec<Box<str>> {
        self.messages.iter().take(self.repairs.len()).map(|message| message.id.clone()).collect()
    }
}
