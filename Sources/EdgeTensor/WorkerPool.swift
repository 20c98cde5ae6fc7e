// Threads that share the work of one operation. Work is cut into pieces whose number and bounds depend on the shapes
// alone, and every piece writes its own part of the result, so the bits are the same for any number of threads.
import CEdgeKernels
import Glibc
import Synchronization

/// `threadCount` threads: the caller's own, and the rest asleep until `run`.
///
/// `@unchecked Sendable`: what threads share is atomic or guarded by `mutex`; `body` is written before the generation
/// that announces it is released, and read after it is acquired.
package final class WorkerPool: @unchecked Sendable {
    package typealias Body = (_ piece: Int, _ scratch: UnsafeMutablePointer<Float>) -> Void

    package let kernels: KernelSet
    /// Set before the pool is used, by whoever measures.
    package var observer: OperationObserver?
    package let threadCount: Int
    package let scratchFloats: Int
    private let scratch: UnsafeMutablePointer<Float>
    private var threads: [pthread_t] = []

    private var body: Body?
    private let pieceCount = Atomic(0)
    private let nextPiece = Atomic(0)
    private let unfinishedThreads = Atomic(0)
    private let generation = Atomic(0)
    private let stopping = Atomic(false)
    private let sleepers = Atomic(0)
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let wake: UnsafeMutablePointer<pthread_cond_t>

    /// Turns of the waiting loop before a thread goes to sleep: some tens of microseconds, longer than the gaps
    /// between the operations of a step.
    private static let spinTurns = 20_000

    /// Bytes of scratch that a pool of `threads` takes from its arena.
    package static func scratchBytes(threads: Int, scratchFloats: Int) -> ByteCount {
        ByteCount(threads * ByteCount.floats(max(scratchFloats, Int(EDGE_PRODUCT_SCRATCH))).bytes)
    }

    /// - Parameter scratchFloats: what the largest piece needs beside `EDGE_PRODUCT_SCRATCH`; the larger is taken.
    package init(kernels: KernelSet, threadCount: Int, scratchFloats: Int, arena: Arena) {
        precondition(threadCount >= 1)
        self.kernels = kernels
        self.threadCount = threadCount
        self.scratchFloats = ByteCount.floats(max(scratchFloats, Int(EDGE_PRODUCT_SCRATCH))).bytes / 4
        scratch = arena.floats(threadCount * self.scratchFloats)
        mutex = .allocate(capacity: 1)
        wake = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(wake, nil)
        edge_flush_denormals()
        for thread in 1..<max(threadCount, 1) { threads.append(start(thread)) }
    }

    deinit {
        stopping.store(true, ordering: .releasing)
        pthread_mutex_lock(mutex)
        pthread_cond_broadcast(wake)
        pthread_mutex_unlock(mutex)
        for thread in threads { pthread_join(thread, nil) }
        pthread_mutex_destroy(mutex)
        pthread_cond_destroy(wake)
        mutex.deallocate()
        wake.deallocate()
    }

    /// Calls `body` once for every piece below `pieces`, on all threads, and returns when all are done. One caller at
    /// a time; `body` must not call `run`.
    package func run(_ pieces: Int, _ body: Body) {
        guard pieces > 0 else { return }
        if threadCount == 1 || pieces == 1 {
            for piece in 0..<pieces { body(piece, scratch) }
            return
        }
        withoutActuallyEscaping(body) { body in
            self.body = body
            pieceCount.store(pieces, ordering: .relaxed)
            nextPiece.store(0, ordering: .relaxed)
            unfinishedThreads.store(threadCount - 1, ordering: .relaxed)
            generation.add(1, ordering: .sequentiallyConsistent)
            if sleepers.load(ordering: .sequentiallyConsistent) > 0 {
                pthread_mutex_lock(mutex)
                pthread_cond_broadcast(wake)
                pthread_mutex_unlock(mutex)
            }
            takePieces(scratch, body)
            var turns = 0
            while unfinishedThreads.load(ordering: .acquiring) > 0 {
                turns += 1
                if turns > Self.spinTurns { sched_yield() }
            }
            self.body = nil
        }
    }

    /// Runs one operation, under the observer's eyes if there is one.
    package func perform(_ operation: Operation, _ cost: @autoclosure () -> OperationCost, _ body: () -> Void) {
        if let observer { observer(operation, cost(), body) } else { body() }
    }

    /// `run`, as one operation.
    package func run(_ pieces: Int, as operation: Operation, _ cost: @autoclosure () -> OperationCost, _ body: Body) {
        perform(operation, cost()) { run(pieces, body) }
    }

    /// `run` over the pieces of several things together, in their order; `body` gets which of them, and its piece.
    func runEach(_ counts: [Int], _ body: (_ index: Int, _ piece: Int, _ scratch: UnsafeMutablePointer<Float>) -> Void) {
        run(counts.reduce(0, +)) { piece, scratch in
            var (index, piece) = (0, piece)
            while piece >= counts[index] {
                piece -= counts[index]
                index += 1
            }
            body(index, piece, scratch)
        }
    }

    private func takePieces(_ scratch: UnsafeMutablePointer<Float>, _ body: Body) {
        let count = pieceCount.load(ordering: .relaxed)
        while true {
            let piece = nextPiece.add(1, ordering: .relaxed).oldValue
            guard piece < count else { return }
            body(piece, scratch)
        }
    }

    private func serve(_ thread: Int) {
        edge_flush_denormals()
        let ownScratch = scratch + thread * scratchFloats
        var seen = 0
        while true {
            guard let found = awaitGeneration(after: seen) else { return }
            seen = found
            takePieces(ownScratch, body!)
            unfinishedThreads.subtract(1, ordering: .releasing)
        }
    }

    /// The next generation, or nil when the pool is going away.
    private func awaitGeneration(after seen: Int) -> Int? {
        for _ in 0..<Self.spinTurns {
            let found = generation.load(ordering: .acquiring)
            if found != seen { return found }
            if stopping.load(ordering: .acquiring) { return nil }
        }
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        sleepers.add(1, ordering: .sequentiallyConsistent)
        defer { sleepers.subtract(1, ordering: .sequentiallyConsistent) }
        while true {
            let found = generation.load(ordering: .sequentiallyConsistent)
            if found != seen { return found }
            if stopping.load(ordering: .acquiring) { return nil }
            pthread_cond_wait(wake, mutex)
        }
    }

    /// What a thread needs to begin. Unmanaged: a strong reference on the thread would keep the pool from ever going
    /// away, and `deinit`, which may run before the thread has begun, joins it.
    private final class Start {
        let pool: Unmanaged<WorkerPool>
        let thread: Int
        init(_ pool: WorkerPool, _ thread: Int) {
            self.pool = .passUnretained(pool)
            self.thread = thread
        }
    }

    private func start(_ thread: Int) -> pthread_t {
        startThread(Unmanaged.passRetained(Start(self, thread)).toOpaque()) { argument in
            let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
            start.pool._withUnsafeGuaranteedRef { $0.serve(start.thread) }
            return nil
        }
    }
}
