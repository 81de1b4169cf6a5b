//! Files in memory, and their page cache.

use alloc::vec::Vec;
use core::fmt;

use crate::errno::Errno;
use crate::frame::Folio;
use crate::memory::{Memory, block_order};

/// A file whose contents are in memory: the folios of its page cache are all there is of it. They are blocks where memory
/// allows, so that what is mapped of it folds, text too. All mappings share them; a private one copies what is written.
///
/// Its size is fixed. The rest of its last page reads as zeroes, or what was written there through a mapping.
pub struct File<'m> {
    memory: &'m Memory<'m>,
    size: u64,
    read_only: bool,
    /// The first page of each folio and the folio, in order, without a gap.
    folios: Vec<(u64, Folio<'m>)>,
}

impl<'m> File<'m> {
    /// A file of these bytes, which may be mapped shared and writable.
    ///
    /// # Errors
    /// [`Errno::OutOfMemory`]; nothing is kept then.
    pub fn new(memory: &'m Memory<'m>, bytes: &[u8]) -> Result<Self, Errno> {
        let page_size = memory.granule().page_size();
        let pages = (bytes.len() as u64).div_ceil(page_size);
        let mut folios = Vec::new();
        let (mut page, mut rest) = (0, bytes);
        while page < pages {
            // The smallest that holds the rest, if a block is not needed; and none, after a smaller one, that no block of a
            // mapping would be congruent with.
            let fitting = (pages - page).next_power_of_two().ilog2() as u8;
            let aligned = page.trailing_zeros() as u8;
            let largest = block_order(memory.granule()).min(fitting).min(aligned);
            let folio = (0..=largest).rev().find_map(|order| memory.frames().alloc(order).ok());
            let folio = folio.ok_or(Errno::OutOfMemory)?;
            let size = folio.frames() * page_size;
            let (here, after) = rest.split_at(rest.len().min(size as usize));
            if (here.len() as u64) < size {
                memory.contents().clear(&folio);
            }
            memory.contents().write(&folio, 0, here);
            let frames = folio.frames();
            folios.try_reserve(1).map_err(|_| Errno::OutOfMemory)?;
            folios.push((page, folio));
            page += frames;
            rest = after;
        }
        Ok(Self { memory, size: bytes.len() as u64, read_only: false, folios })
    }

    /// The same file, of which no shared mapping may be written to.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Whether no shared mapping may be written to.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads from `offset` on, as far as the file and `into` go. Returns how many bytes.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let page_size = self.memory.granule().page_size();
        let wanted = self.size.saturating_sub(offset).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (first, folio) = self.folio(at / page_size).expect("a page before the end");
            let within = at - first * page_size;
            let left = (folio.frames() * page_size - within) as usize;
            let nr = left.min(wanted - done);
            self.memory.contents().read(folio, within, &mut into[done..done + nr]);
            done += nr;
        }
        done
    }

    /// Pages that have some of it.
    pub(crate) fn pages(&self) -> u64 {
        self.size.div_ceil(self.memory.granule().page_size())
    }

    /// The folio that holds a page, and the folio's first page; `None` behind the end.
    pub(crate) fn folio(&self, page: u64) -> Option<(u64, &Folio<'m>)> {
        if page >= self.pages() {
            return None;
        }
        let index = self.folios.partition_point(|(first, _)| *first <= page);
        let (first, folio) = &self.folios[index - 1];
        Some((*first, folio))
    }
}

impl fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file of {:#x} bytes in {} folios", self.size, self.folios.len())
    }
}
