// SPDX-License-Identifier: Apache-2.0
//! The pages of the program itself. Starting reads a third of it once, and the kernel maps sixteen
//! pages for each that is touched: an idle proxy would go on being charged for all of them. Called
//! by the binary once it serves; what is needed again is mapped again, from the page cache.
#![allow(unsafe_code)]

/// Has the kernel forget which pages of the program's code and constants this process has used.
/// Costs some hundred soft page faults later. Returns how many bytes they may have been.
pub fn forget_used_pages() -> usize {
    let page = page_size();
    let mut bytes = 0;
    for (start, length) in read_only_segments(page) {
        // SAFETY: the range lies within a segment of the program that no one may write, now or
        // before: its pages are those of the file, and are read from there again.
        let done =
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        bytes += if done == 0 { length } else { 0 };
    }
    bytes
}

/// The system's. As the C library knows it: rustix reads what the kernel told at the start once
/// more, and crashes where valgrind hides a part of that.
pub fn page_size() -> usize {
    // SAFETY: it only looks something up.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|n| n.is_power_of_two()).unwrap_or(4096)
}

/// Address and length of what was loaded of the program to be read or executed only. What the
/// loader writes (relocations) is in segments that may be written, also when it is protected later.
fn read_only_segments(page: usize) -> Vec<(usize, usize)> {
    let headers = headers();
    let of = |p: &&libc::Elf64_Phdr| p.p_type == libc::PT_PHDR;
    // Where the headers are and where they say that they are: the difference is the program's base.
    let Some(own) = headers.iter().find(of) else { return Vec::new() };
    let base = (headers.as_ptr() as usize).wrapping_sub(size(own.p_vaddr));
    let fixed = |p: &&libc::Elf64_Phdr| p.p_type == libc::PT_LOAD && p.p_flags & libc::PF_W == 0;
    let whole_pages = |p: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(size(p.p_vaddr)).next_multiple_of(page);
        let end = base.wrapping_add(size(p.p_vaddr) + size(p.p_memsz)) / page * page;
        Some((start, end.checked_sub(start).filter(|n| *n > 0)?))
    };
    headers.iter().filter(fixed).filter_map(whole_pages).collect()
}

/// The program's own headers, as the kernel tells where they are.
fn headers() -> &'static [libc::Elf64_Phdr] {
    // SAFETY: both calls only look something up.
    let (at, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let at = size(at) as *const libc::Elf64_Phdr;
    if at.is_null() || !at.is_aligned() {
        return &[];
    }
    // SAFETY: the kernel says that so many headers are there; they are loaded with the program, in
    // a part of it that is not written, for as long as it runs.
    unsafe { std::slice::from_raw_parts(at, size(count)) }
}

/// An address or a length; the systems that are supported have 64 bits.
fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_when_its_pages_are_forgotten() {
        let page = page_size();
        assert!(page >= 4096 && page.is_power_of_two(), "{page}");
        let segments = read_only_segments(page);
        let contains =
            |at: usize| segments.iter().any(|(start, n)| (*start..start + n).contains(&at));
        assert!(contains(forget_used_pages as *const () as usize), "its code is among them");
        assert!(contains("a constant".as_ptr() as usize), "so are its constants");
        static WRITTEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(7);
        static RELOCATED: [fn() -> usize; 1] = [forget_used_pages];
        assert!(!contains(WRITTEN.as_ptr() as usize) && !contains(RELOCATED.as_ptr() as usize));
        let bytes = forget_used_pages();
        assert_eq!(bytes, segments.iter().map(|(_, n)| n).sum::<usize>());
        assert_eq!(RELOCATED[0](), bytes);
        assert_eq!(WRITTEN.load(std::sync::atomic::Ordering::Relaxed), 7);
    }
}
