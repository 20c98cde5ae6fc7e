// When a run may start and go on: heat, power, hours, disk. A pure function of what the machine shows and of what is
// configured; the queue asks it for jobs that wait and, every few seconds, for the one that runs. Memory is MemoryJudge's.
import EdgeJobs
import EdgeWire
import Foundation

/// What policies look at.
package struct HostConditions: Equatable, Sendable {
    package var zones: [ThermalZone]
    package var power: HostPower
    /// Local time: 0 to 1439.
    package var minuteOfDay: Int
    /// Of the file system with the jobs.
    package var diskFreeBytes: UInt64
    package var diskTotalBytes: UInt64

    package init(zones: [ThermalZone], power: HostPower, minuteOfDay: Int, diskFreeBytes: UInt64, diskTotalBytes: UInt64) {
        self.zones = zones
        self.power = power
        self.minuteOfDay = minuteOfDay
        self.diskFreeBytes = diskFreeBytes
        self.diskTotalBytes = diskTotalBytes
    }

    /// Now. The hour is the only thing that is read from the calendar's clock, anew with every look: whatever the clock was set
    /// to, the next look goes by it.
    init(_ files: HostFiles, disk path: String) {
        var status = statvfs()
        let isKnown = statvfs(path, &status) == 0
        func bytes(_ blocks: fsblkcnt_t) -> UInt64 { isKnown ? UInt64(blocks) * UInt64(status.f_frsize) : 0 }
        self.init(
            zones: HostThermal.zones(files), power: HostPower(files), minuteOfDay: Self.minuteOfDay(),
            diskFreeBytes: bytes(status.f_bavail), diskTotalBytes: bytes(status.f_blocks))
    }

    private static func minuteOfDay() -> Int {
        var (now, parts) = (time(nil), tm())
        // Reads /etc/localtime again when it has changed.
        tzset()
        localtime_r(&now, &parts)
        return Int(parts.tm_hour) * 60 + Int(parts.tm_min)
    }
}

package struct RunPolicies: Equatable, Sendable {
    package enum MostHeat: Equatable, Sendable {
        /// `margin` below each zone's throttling.
        case belowThrottling
        case celsius(Double)
        case unlimited

        package init?(_ text: String) {
            switch text {
            case "auto": self = .belowThrottling
            case "off": self = .unlimited
            default:
                guard let celsius = Double(text), (30...120).contains(celsius) else { return nil }
                self = .celsius(celsius)
            }
        }
    }

    package enum OnBattery: Equatable, Sendable {
        case pause, run
        /// While there is at least so much, in percent.
        case runAbove(Int)

        package init?(_ text: String) {
            switch text {
            case "pause": self = .pause
            case "run": self = .run
            default:
                guard text.hasSuffix("%"), let percent = Int(text.dropLast()), (1...99).contains(percent) else { return nil }
                self = .runAbove(percent)
            }
        }
    }

    package var mostHeat = MostHeat.belowThrottling
    /// °C below the limit from where a run may start.
    package var hysteresis = 8.0
    package var onBattery = OnBattery.pause
    package var hours: DayWindow?
    /// Nil: no floor.
    package var leastFreeDisk: MemoryBudget? = .bytes(512 << 20)

    package init() {}

    /// °C below throttling: the kernel and the firmware get there later, and by themselves only with a fan that is loud or clocks
    /// that are low.
    private static let margin = 5.0
    /// Percent above its limit that a battery must have for a run to start.
    private static let batteryHysteresis = 5

    /// What is in the way of a run; the first of them.
    ///
    /// - Parameters:
    ///   - jobHours: the job's own; both must be open.
    ///   - spill: bytes that the run will take on the disk.
    package func obstacle(
        _ host: HostConditions, jobHours: DayWindow? = nil, spill: UInt64 = 0, _ phase: RunPhase
    ) -> Obstacle? {
        closed(hours, "the daemon's", host) ?? closed(jobHours, "the job's", host) ?? battery(host, phase)
            ?? heat(host, phase) ?? disk(host, spill, phase)
    }

    // MARK: heat

    package func limit(of zone: ThermalZone, in zones: [ThermalZone]) -> Double? {
        switch mostHeat {
        case .unlimited: return nil
        case .belowThrottling: return zone.throttling.map { $0.celsius - Self.margin }
        // A room's sensor is not meant, unless there is nothing else.
        case .celsius(let celsius): return zone.throttling != nil || zones.allSatisfy { $0.throttling == nil } ? celsius : nil
        }
    }

    private func heat(_ host: HostConditions, _ phase: RunPhase) -> Obstacle? {
        for zone in host.zones {
            guard let limit = limit(of: zone, in: host.zones) else { continue }
            let most = phase == .run ? limit : limit - hysteresis
            if zone.celsius >= most { return Obstacle(.heat, text(zone, limit)) }
        }
        return nil
    }

    private func text(_ zone: ThermalZone, _ limit: Double) -> String {
        var text = "\(zone.name) is at \(degrees(zone.celsius)), runs pause at \(degrees(limit))"
        if mostHeat == .belowThrottling, let throttling = zone.throttling {
            text += " (\(throttling.source) at \(degrees(throttling.celsius)))"
        }
        return text + " and start below \(degrees(limit - hysteresis))"
    }

    private func degrees(_ celsius: Double) -> String {
        celsius == celsius.rounded() ? "\(Int(celsius)) °C" : String(format: "%.1f °C", celsius)
    }

    // MARK: power, hours, disk

    private func battery(_ host: HostConditions, _ phase: RunPhase) -> Obstacle? {
        guard case .battery(let percent) = host.power else { return nil }
        switch onBattery {
        case .run: return nil
        case .pause: return Obstacle(.power, text(percent))
        case .runAbove(let least):
            let needed = phase == .run ? least : min(100, least + Self.batteryHysteresis)
            // A battery that does not say how full it is may be empty.
            guard (percent ?? 0) < needed else { return nil }
            return Obstacle(
                .power, "\(text(percent)), runs pause below \(least) % and start from \(min(100, least + Self.batteryHysteresis)) %")
        }
    }

    private func text(_ percent: Int?) -> String { "on battery" + (percent.map { ", \($0) %" } ?? "") }

    private func closed(_ hours: DayWindow?, _ whose: String, _ host: HostConditions) -> Obstacle? {
        guard let hours, !hours.contains(minuteOfDay: host.minuteOfDay) else { return nil }
        return Obstacle(.hours, "\(whose) run_between is \(hours.text)")
    }

    private func disk(_ host: HostConditions, _ spill: UInt64, _ phase: RunPhase) -> Obstacle? {
        guard let floor = leastFreeDisk?.resolved(machineBytes: host.diskTotalBytes) else { return nil }
        // A running one has its files already. A quarter more, so that a start does not meet the floor with its first checkpoint.
        let needed = phase == .run ? floor : floor + floor / 4 + spill
        guard host.diskFreeBytes < needed else { return nil }
        return Obstacle(
            .disk,
            "\(host.diskFreeBytes >> 20) MiB are free, runs pause below \(floor >> 20) MiB and start from "
                + "\((floor + floor / 4 + spill) >> 20) MiB")
    }

    // MARK: status

    /// Every policy with its figures, whether it is in the way or not.
    package func report(_ host: HostConditions, pressure: MemoryPressure?) -> [HostStatus.Policy] {
        func policy(_ name: String, _ obstacle: Obstacle?, otherwise text: String) -> HostStatus.Policy {
            HostStatus.Policy(name: name, allows: obstacle == nil, text: obstacle?.detail ?? text)
        }
        let judged = host.zones.compactMap { zone in limit(of: zone, in: host.zones).map { (zone, $0) } }
        let nearest = judged.min { $0.1 - $0.0.celsius < $1.1 - $1.0.celsius }
        let power: String =
            switch host.power {
            case .mains: "mains, or nothing that says otherwise"
            case .battery(let percent): text(percent)
            }
        let calm = pressure.map { $0.some.avg10 < MemoryThreshold.calmStall } ?? true
        return [
            policy("hours", closed(hours, "the daemon's", host), otherwise: hours.map { "open, \($0.text)" } ?? "always"),
            policy("power", battery(host, .start), otherwise: power),
            policy(
                "heat", heat(host, .start),
                otherwise: nearest.map { text($0.0, $0.1) }
                    ?? (mostHeat == .unlimited ? "no limit" : "no zone says from where it throttles")),
            policy(
                "disk", disk(host, 0, .start),
                otherwise: "\(host.diskFreeBytes >> 20) MiB are free"
                    + (leastFreeDisk.map { ", runs pause below \($0.resolved(machineBytes: host.diskTotalBytes) >> 20) MiB" } ?? "")),
            HostStatus.Policy(
                name: "memory", allows: calm,
                text: pressure.map { "pressure, some avg10 \($0.some.avg10) %, runs start below \(MemoryThreshold.calmStall) %" }
                    ?? "the kernel tells no pressure"),
        ]
    }
}
