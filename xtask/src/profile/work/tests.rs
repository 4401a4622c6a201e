//! Call chains that were seen, and what they are counted as.

use super::*;

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const AGENT: &str = "/opt/vmferry/target/release/vmferry";

/// What a stack is counted as: functions of the kernel, innermost first, and after them those of programs and their files.
fn work(comm: &str, kernel: &str, user: &[(&str, &str)]) -> Option<Work> {
    let kernel = kernel.split_whitespace().map(|symbol| Frame {
        symbol,
        module: "[kernel.kallsyms]",
        in_kernel: true,
    });
    let user = user.iter().map(|&(symbol, module)| Frame {
        symbol,
        module,
        in_kernel: false,
    });
    let frames: Vec<Frame<'_>> = kernel.chain(user).collect();
    Work::of(comm, &frames)
}

#[test]
fn the_guests_own_work_does_not_count_whatever_it_is() {
    let wakes = "_raw_spin_unlock_irqrestore try_to_wake_up wake_up_q futex_wake do_futex __x64_sys_futex do_syscall_64 \
                 entry_SYSCALL_64_after_hwframe";
    assert_eq!(work("CPU 0/TCG", wakes, &[("__GI___lll_lock_wake", LIBC)]), None);
    assert_eq!(work("CPU 0/TCG", "", &[("helper_lookup_tb_ptr", QEMU)]), None);
    let counted = work("lane-0", wakes, &[("syscall", LIBC)]);
    assert_eq!(counted, Some(Work::Waiting));
}

#[test]
fn a_system_call_is_told_by_what_the_kernel_ran_for_it() {
    let sends_tcp = "_copy_from_iter tcp_sendmsg_locked tcp_sendmsg sock_write_iter do_iter_readv_writev vfs_writev \
                     do_writev do_syscall_64 entry_SYSCALL_64_after_hwframe";
    let sender = ("vmferry_dataplane::connection::Sender::send", AGENT);
    assert_eq!(
        work("lane-1", sends_tcp, &[("__GI___writev", LIBC), sender]),
        Some(Work::Tcp)
    );
    let reads_unix = "__check_object_size simple_copy_to_iter __skb_datagram_iter skb_copy_datagram_iter \
                      unix_stream_read_actor unix_stream_read_generic unix_stream_recvmsg sock_recvmsg __sys_recvfrom \
                      __x64_sys_recvfrom do_syscall_64 entry_SYSCALL_64_after_hwframe";
    assert_eq!(work("reader", reads_unix, &[("__libc_recv", LIBC)]), Some(Work::Unix));
    let reads_disk = "_raw_spin_unlock follow_page_pte __get_user_pages __gup_longterm_locked gup_fast_fallback \
                      iov_iter_extract_pages bio_iov_iter_get_pages iomap_dio_bio_iter __iomap_dio_rw iomap_dio_rw \
                      ext4_file_read_iter vfs_read __x64_sys_pread64 do_syscall_64 entry_SYSCALL_64_after_hwframe";
    assert_eq!(
        work("lane-0", reads_disk, &[("__libc_pread", LIBC)]),
        Some(Work::Reading)
    );
    let writes = "__memcg_slab_post_alloc_hook kmem_cache_alloc_noprof alloc_buffer_head folio_alloc_buffers \
                  create_empty_buffers ext4_block_write_begin ext4_da_write_begin generic_perform_write \
                  ext4_buffered_write_iter vfs_write __x64_sys_pwrite64 do_syscall_64 entry_SYSCALL_64_after_hwframe";
    assert_eq!(
        work("tokio-rt-worker", writes, &[("__libc_pwrite", LIBC)]),
        Some(Work::Kept)
    );
    let ends = "__tlb_remove_folio_pages unmap_page_range unmap_vmas exit_mmap __mmput do_exit do_group_exit \
                __x64_sys_exit_group x64_sys_call do_syscall_64 entry_SYSCALL_64_after_hwframe";
    assert_eq!(work("ip", ends, &[]), Some(Work::Processes));
}

#[test]
fn who_waits_for_a_socket_waits() {
    let waits = "finish_task_switch.isra.0 __schedule schedule schedule_timeout unix_stream_read_generic \
                 unix_stream_recvmsg sock_recvmsg ____sys_recvmsg ___sys_recvmsg __sys_recvmsg do_syscall_64 \
                 entry_SYSCALL_64_after_hwframe";
    assert_eq!(
        work("mig/src/return", waits, &[("__libc_recvmsg", LIBC)]),
        Some(Work::Waiting)
    );
}

#[test]
fn clearing_is_told_apart_in_guest_memory_and_in_faults() {
    let places = "clear_page_erms folio_zero_user vma_alloc_anon_folio_pmd do_huge_pmd_anonymous_page __handle_mm_fault \
                  handle_mm_fault __get_user_pages __gup_longterm_locked pin_user_pages_remote \
                  process_vm_rw_core.constprop.0 process_vm_rw __x64_sys_process_vm_writev do_syscall_64 \
                  entry_SYSCALL_64_after_hwframe";
    let copies = "_copy_from_iter copy_page_from_iter process_vm_rw_core.constprop.0 process_vm_rw \
                  __x64_sys_process_vm_writev do_syscall_64 entry_SYSCALL_64_after_hwframe";
    let by = &[("process_vm_writev", LIBC)];
    assert_eq!(work("placer-1", places, by), Some(Work::GuestMemoryCleared));
    assert_eq!(work("placer-1", copies, by), Some(Work::GuestMemory));

    let cleared = "clear_page_erms get_page_from_freelist __alloc_frozen_pages_noprof alloc_pages_mpol \
                   vma_alloc_folio_noprof do_anonymous_page __handle_mm_fault handle_mm_fault exc_page_fault \
                   asm_exc_page_fault";
    let listed = "_raw_spin_unlock_irqrestore folio_batch_move_lru __folio_batch_add_and_move do_anonymous_page \
                  __handle_mm_fault handle_mm_fault exc_page_fault asm_exc_page_fault";
    let by = &[("_int_malloc", LIBC)];
    assert_eq!(work("lane-0", cleared, by), Some(Work::FaultsCleared));
    assert_eq!(work("lane-0", listed, by), Some(Work::Faults));
    let while_reading = "_copy_to_iter copy_page_to_iter filemap_read vfs_read ksys_read do_syscall_64 \
                         entry_SYSCALL_64_after_hwframe";
    let read = &[("read", LIBC)];
    assert_eq!(work("qemu-system-x86", while_reading, read), Some(Work::Reading));
    let faulted = format!("{cleared} {while_reading}");
    assert_eq!(work("qemu-system-x86", &faulted, read), Some(Work::FaultsCleared));
}

#[test]
fn what_an_interrupt_brings_is_not_what_it_came_upon() {
    let packets = "ip_rcv_finish ip_sabotage_in nf_hook_slow ip_rcv __netif_receive_skb_one_core netif_receive_skb \
                   br_handle_frame_finish br_nf_hook_thresh br_nf_pre_routing_finish br_nf_pre_routing br_handle_frame \
                   __netif_receive_skb_core.constprop.0 __netif_receive_skb_one_core process_backlog __napi_poll \
                   net_rx_action handle_softirqs __irq_exit_rcu sysvec_apic_timer_interrupt \
                   asm_sysvec_apic_timer_interrupt";
    let sends_unix = "__memcg_slab_post_alloc_hook __kmalloc_node_track_caller_noprof kmalloc_reserve __alloc_skb \
                      alloc_skb_with_frags sock_alloc_send_pskb unix_stream_sendmsg ____sys_sendmsg ___sys_sendmsg \
                      __sys_sendmsg do_syscall_64 entry_SYSCALL_64_after_hwframe";
    let by = &[("__libc_sendmsg", LIBC)];
    let both = format!("{packets} {sends_unix}");
    assert_eq!(work("mig/src/main", &both, by), Some(Work::Tcp));
    assert_eq!(work("mig/src/main", sends_unix, by), Some(Work::Unix));
    // The clock's interrupt, which takes the samples, brings nothing.
    let sampled = format!("irqentry_exit asm_sysvec_apic_timer_interrupt {sends_unix}");
    assert_eq!(work("mig/src/main", &sampled, by), Some(Work::Unix));
}

#[test]
fn packets_of_the_guest_are_not_those_of_the_move() {
    let hands_over = "_raw_spin_unlock_irqrestore sock_def_readable tcp_rcv_established tcp_v4_do_rcv tcp_v4_rcv \
                      ip_protocol_deliver_rcu ip_local_deliver_finish __netif_receive_skb_one_core process_backlog \
                      __napi_poll net_rx_action handle_softirqs do_softirq.part.0 __local_bh_enable_ip tun_get_user \
                      tun_chr_write_iter do_iter_readv_writev vfs_writev do_writev do_syscall_64 \
                      entry_SYSCALL_64_after_hwframe";
    let by = &[("__GI___writev", LIBC), ("[unknown]", "[unknown]")];
    assert_eq!(work("qemu-system-x86", hands_over, by), Some(Work::GuestNetwork));
}

#[test]
fn of_a_program_only_the_innermost_function_counts() {
    let copy = ("__memmove_avx512_unaligned_erms", LIBC);
    let unsure = ("vmferry_core::page::lines::hashes", AGENT);
    assert_eq!(work("lane-0", "", &[copy, unsure]), Some(Work::Copying));
    let seal = ("aws_lc_0_47_0_aes_gcm_encrypt_avx512", AGENT);
    assert_eq!(work("lane-0", "", &[seal]), Some(Work::Tls));
    for (symbol, file, expected) in [
        ("vmferry_core::page::lines::hashes", AGENT, Work::LineHashes),
        ("_blake3_hash_many_avx512", AGENT, Work::Fingerprints),
        ("xxhash_rust::xxh3::hash_long_internal_loop", AGENT, Work::BlockHashes),
        ("hashbrown::map::HashMap<K,V,S,A>::insert", AGENT, Work::Tables),
        ("vmferry_core::page::catalog::BlockTable::find", AGENT, Work::Tables),
        (
            "ZSTD_compressBlock_fast_extDict_generic.constprop.0",
            AGENT,
            Work::Coding,
        ),
        ("aws_lc_0_47_0_aes_gcm_encrypt_avx512", AGENT, Work::Kept),
        ("rustls::record_layer::RecordLayer::encrypt_outgoing", AGENT, Work::Tls),
        ("__memcmp_evex_movbe", LIBC, Work::Comparing),
        ("_int_malloc", LIBC, Work::Allocating),
        ("vmferry_core::page::decode::Decoder::decode", AGENT, Work::OwnCode),
        ("[unknown]", "/usr/lib/x86_64-linux-gnu/libzstd.so.1.5.4", Work::Coding),
        ("[unknown]", QEMU, Work::OwnCode),
        ("__vdso_clock_gettime", "[vdso]", Work::Rest),
    ] {
        assert_eq!(work("worker", "", &[(symbol, file)]), Some(expected), "{symbol}");
    }
}
