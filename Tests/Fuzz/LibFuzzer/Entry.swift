// What libFuzzer calls, by way of allocations.c. Compiled by `run` alone, with the targets of one plane.
import Foundation

#if FUZZ_CONTROL
    private let all = FuzzTarget.control
#else
    private let all = FuzzTarget.data + FuzzTarget.canaries
#endif
nonisolated(unsafe) private var selected = all[0]

/// Prints the target's limits as libFuzzer's options, or all names, and ends; or goes on with the target of that name.
@_cdecl("edge_fuzz_select")
func select(_ text: UnsafePointer<CChar>) {
    let words = String(cString: text).split(separator: " ")
    if words == ["list"] {
        for target in all { print(target.name) }
        exit(0)
    }
    guard let name = words.first, let target = all.first(where: { $0.name == name }) else {
        fatalError("no target of that name; there are \(all.map(\.name).joined(separator: ", "))")
    }
    if words.last == "limits" {
        let mebibytes = target.heap.limit(target.longestInput) >> 20 + 1
        print("-max_len=\(target.longestInput) -timeout=\(target.seconds) -malloc_limit_mb=\(mebibytes)")
        exit(0)
    }
    selected = target
}

@_cdecl("edge_fuzz_heap_limit")
func heapLimit(_ inputBytes: Int) -> Int { selected.heap.limit(inputBytes) }

@_cdecl("edge_fuzz_prepare")
func prepare() {
    do { try selected.prepare() } catch { fatalError("\(error)") }
}

/// Ends the process with what was broken.
@_cdecl("edge_fuzz_read")
func read(_ bytes: UnsafePointer<UInt8>?, _ count: Int) {
    if let broken = selected.broken(by: UnsafeRawBufferPointer(start: bytes, count: count)) {
        FileHandle.standardError.write(Data("BROKEN: \(broken)\n".utf8))
        abort()
    }
}
