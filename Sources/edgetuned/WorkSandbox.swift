// What confines a worker: it has read its order, and touches no byte of a user's before this is around it. A file that took
// the process over would reach the files of this order, and nothing else: no other file, process, program or network.
// The kernel's part is CEdgeSandbox's; what an order needs is said here, for each kind of order.
import CEdgeSandbox
import CSystemd
import EdgeFormats
import EdgeJobs
import EdgeWire
import Foundation

/// The paths that an order needs beside the system's own.
struct OrderPaths: Equatable {
    /// Files, or directories with all that is in them.
    var readable: [String] = []
    /// Directories to make, replace and remove files in.
    var writable: [String] = []
    /// No file may be made larger.
    var largestFileBytes: UInt64 = 0
}

extension WorkOrder {
    /// A path that is missing here cannot be opened: a new order fails, and does not leak.
    var paths: OrderPaths {
        switch self {
        case .train(let order):
            return OrderPaths(
                readable: order.readablePaths, writable: [order.directory],
                largestFileBytes: order.largestFileBytes ?? WireLimit.blobBytes)
        case .trainTogether(let order):
            return OrderPaths(
                readable: order.jobs.flatMap(\.readablePaths), writable: order.jobs.map(\.directory),
                largestFileBytes: order.jobs[0].largestFileBytes ?? WireLimit.blobBytes)
        // Their directories are not there yet.
        case .planTogether(let orders): return OrderPaths(readable: orders.flatMap(\.readablePaths))
        case .plan(let order): return OrderPaths(readable: order.readablePaths)
        case .compareMethods(let order): return OrderPaths(readable: [order.modelPath] + [order.calibrationPath].compactMap { $0 })
        case .rankLinears(let order): return OrderPaths(readable: [order.modelPath] + order.datasetPaths)
        case .calibrate(let order):
            return OrderPaths(writable: [parent(of: order.path)], largestFileBytes: WireLimit.blobBytes)
        case .inspectModel(let path), .inspectDataset(let path): return OrderPaths(readable: [path])
        case .planImport(let files): return OrderPaths(readable: files.map(\.path))
        case .importModel(let order):
            return OrderPaths(
                readable: order.files.map(\.path), writable: [parent(of: order.outputPath)],
                largestFileBytes: order.outputBytes)
        case .importAdapter(let order):
            return OrderPaths(
                readable: [order.tensorsPath, order.modelPath] + [order.configPath].compactMap { $0 },
                writable: [parent(of: order.outputDirectory)], largestFileBytes: WireLimit.blobBytes)
        case .combineAdapters(let order):
            return OrderPaths(
                readable: order.adapterDirectories + [order.modelPath], writable: [parent(of: order.outputDirectory)],
                largestFileBytes: WireLimit.blobBytes)
        case .composeAdapters(let order):
            return OrderPaths(
                readable: order.adapterDirectories + [order.datasetPath, order.modelPath], writable: [parent(of: order.outputDirectory)],
                largestFileBytes: WireLimit.blobBytes)
        case .generate(let order):
            return OrderPaths(readable: [order.modelPath] + [order.adapterDirectory].compactMap { $0 })
        case .merge(let order):
            return OrderPaths(
                readable: [order.adapterDirectory, order.modelPath] + (order.job?.datasetPaths ?? []),
                writable: [parent(of: order.outputDirectory)], largestFileBytes: WireLimit.blobBytes)
        case .export(let order):
            return OrderPaths(
                readable: [order.adapterDirectory, order.modelPath], writable: [parent(of: order.outputPath)],
                largestFileBytes: WireLimit.blobBytes)
        }
    }
}

extension WorkOrder.TrainOrder {
    fileprivate var readablePaths: [String] {
        [modelPath] + datasetPaths + [calibrationPath, initialAdapterDirectory, originalModelPath].compactMap { $0 }
    }
}

enum WorkSandbox {
    /// Confines this process, as far as the kernel can, for good.
    ///
    /// - Parameter group: the run's cgroup, whose counters are read.
    /// - Returns: what holds, for the job's log.
    /// - Throws: a problem when what the kernel has cannot be used: that is a fault of this program.
    static func enter(for order: WorkOrder, _ host: HostFiles, group: String?) throws(Problem) -> String {
        let threads = edge_thread_count()
        guard threads <= 1 else {
            throw Problem(.internalError, "the worker had \(threads) threads before it was confined")
        }
        edge_close_descriptors(3)
        let paths = order.paths
        setLimits(largestFileBytes: paths.largestFileBytes)
        let privileges = edge_drop_privileges()
        guard privileges == 0 else { throw refused("privileges", privileges) }
        let system = systemPaths + processPaths + host.paths(ofGroup: group)
        let files = try confineFiles(readable: system + paths.readable, writable: paths.writable)
        // Last: it allows none of the calls above.
        let calls = edge_seccomp_confine()
        return "sandbox: \(files); "
            + (calls == 0 ? "system calls filtered" : "system calls not filtered (\(text(calls)))") + ", no privileges"
    }

    /// Libraries that are loaded late (libgcc for an exception, say) and what they read.
    private static let systemPaths = [
        "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu",
    ]

    /// Of /proc: not `self`, which is a link, and of other processes nothing.
    private static var processPaths: [String] {
        ["/proc/\(getpid())", "/proc/meminfo", "/proc/pressure", "/proc/stat", "/proc/cpuinfo"]
    }

    private static func confineFiles(readable: [String], writable: [String]) throws(Problem) -> String {
        let texts = (readable + writable).map { strdup($0) }
        defer { texts.forEach { free($0) } }
        let rules = texts.enumerated().map { place, text in
            edge_sandbox_rule(
                path: text.map { UnsafePointer($0) },
                access: UInt32(place < readable.count ? EDGE_SANDBOX_READ : EDGE_SANDBOX_WRITE))
        }
        var failed = 0
        let abi = edge_landlock_abi()
        guard abi > 0 else { return "this kernel has no Landlock, the service's unit alone confines files" }
        let error = edge_landlock_confine(rules, rules.count, &failed)
        guard error == 0 else {
            throw refused("Landlock \(abi)" + (failed < rules.count ? " for \((readable + writable)[failed])" : ""), error)
        }
        return "Landlock \(abi) (" + (["files"] + (abi >= 4 ? ["TCP"] : []) + (abi >= 6 ? ["signals"] : []))
            .joined(separator: ", ") + ")"
    }

    /// No core file, which would have a user's text in it; no more descriptors than a model of many files needs; no larger file
    /// than the order makes.
    private static func setLimits(largestFileBytes: UInt64) {
        func limit(_ resource: __rlimit_resource, to value: UInt64) {
            let resource = __rlimit_resource_t(resource.rawValue)
            var limits = rlimit()
            guard getrlimit(resource, &limits) == 0 else { return }
            limits.rlim_max = min(limits.rlim_max, rlim_t(value))
            limits.rlim_cur = min(limits.rlim_cur, limits.rlim_max)
            // Lowering cannot be refused.
            _ = setrlimit(resource, &limits)
        }
        limit(RLIMIT_CORE, to: 0)
        limit(RLIMIT_NOFILE, to: UInt64(WireLimit.modelFiles) + 256)
        // Not nothing: what it says may go to a file.
        limit(RLIMIT_FSIZE, to: max(largestFileBytes, 1 << 20))
        // Then writing says EFBIG, which is an error with a path, and not the end without a word.
        signal(SIGXFSZ, SIG_IGN)
    }

    private static func refused(_ what: String, _ error: Int32) -> Problem {
        Problem(.internalError, "the worker could not be confined: \(what): \(text(error))")
    }

    private static func text(_ error: Int32) -> String { String(cString: strerror(error)) }
}

extension HostFiles {
    /// What `MemoryWatch` reads of a run's group; of a captured tree, all.
    fileprivate func paths(ofGroup group: String?) -> [String] {
        (self == .machine ? [] : [root]) + [group ?? ControlGroup.own(self).map { root + $0 }].compactMap { $0 }
    }
}
