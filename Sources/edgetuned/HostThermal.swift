// How hot the machine is, zone by zone, and from where each zone's processor throttles: as the kernel's files say it.
// Documentation/ABI/testing/sysfs-class-thermal. What a run does about it is in RunPolicies.
import EdgeWire

package struct ThermalZone: Equatable, Sendable {
    /// From where clocks are lowered, and who says so.
    package struct Throttling: Equatable, Sendable {
        package let celsius: Double
        package let source: String

        package init(celsius: Double, source: String) {
            self.celsius = celsius
            self.source = source
        }
    }

    /// The zone's type: "cpu-thermal", "x86_pkg_temp", "bigcore0-thermal".
    package let name: String
    package let celsius: Double
    /// Nil: nobody says, and the zone is only shown.
    package let throttling: Throttling?

    package init(name: String, celsius: Double, throttling: Throttling?) {
        self.name = name
        self.celsius = celsius
        self.throttling = throttling
    }
}

package enum HostThermal {
    /// Readings beyond these are of a sensor that is off or broken; an idle one shows 0 K or all ones.
    private static let plausible = -40.0...150.0
    /// A passive trip below is no throttling point: x86_pkg_temp has its two at 0 until somebody sets them, and some firmware
    /// leaves a zone's unset.
    private static let leastTrip = 40.0
    /// The firmware of every Raspberry Pi lowers the clock from 80 °C on; the kernel has a critical trip only.
    /// raspberrypi.com/documentation, "Frequency management and thermal control".
    private static let raspberryPi = ThermalZone.Throttling(celsius: 80, source: "Raspberry Pi's firmware throttles")
    /// Where a zone has nothing but its end: chips throttle 10 to 30 °C before it, and this is the latest of that.
    private static let belowCritical = 15.0

    package static func zones(_ files: HostFiles) -> [ThermalZone] {
        let root = "/sys/class/thermal"
        let tjMax = packageLimit(files)
        let isRaspberryPi =
            files.text("/sys/firmware/devicetree/base/compatible")?.split(separator: "\0").contains { $0.hasPrefix("raspberrypi,") }
            ?? false
        return files.names(root).filter { $0.hasPrefix("thermal_zone") }.compactMap { directory in
            let zone = "\(root)/\(directory)"
            guard let celsius = celsius(zone + "/temp", files), plausible.contains(celsius),
                files.word(zone + "/mode") != "disabled"
            else { return nil }
            let name = files.word(zone + "/type") ?? directory
            let trips = trips(zone, files)
            func least(_ type: String) -> Double? { trips.filter { $0.type == type && $0.celsius >= leastTrip }.map(\.celsius).min() }
            var throttling: ThermalZone.Throttling?
            if let passive = least("passive") {
                throttling = .init(celsius: passive, source: "its passive trip is")
            } else if name == "x86_pkg_temp" {
                throttling = tjMax.map { .init(celsius: $0, source: "the processor throttles") }
            } else if isRaspberryPi, name == "cpu-thermal" {
                throttling = raspberryPi
            } else if let critical = least("critical") {
                throttling = .init(
                    celsius: critical - belowCritical, source: "\(Int(belowCritical)) °C before its critical trip is")
            }
            return ThermalZone(name: name, celsius: celsius, throttling: throttling)
        }
    }

    private static func celsius(_ path: String, _ files: HostFiles) -> Double? {
        files.word(path).flatMap(Double.init).map { $0 / 1000 }
    }

    private static func trips(_ zone: String, _ files: HostFiles) -> [(type: String, celsius: Double)] {
        files.names(zone).compactMap { name in
            guard name.hasPrefix("trip_point_"), name.hasSuffix("_type"), let type = files.word("\(zone)/\(name)"),
                let celsius = celsius("\(zone)/\(name.dropLast("type".count))temp", files)
            else { return nil }
            return (type, celsius)
        }
    }

    /// Intel's TjMax, as coretemp has it: the processor throttles itself there.
    private static func packageLimit(_ files: HostFiles) -> Double? {
        let root = "/sys/class/hwmon"
        return files.names(root).filter { files.word("\(root)/\($0)/name") == "coretemp" }
            .compactMap { celsius("\(root)/\($0)/temp1_crit", files) }.filter { $0 >= leastTrip }.min()
    }
}
