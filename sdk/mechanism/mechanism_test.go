// SPDX-License-Identifier: Apache-2.0

package mechanism

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestParseFormat(t *testing.T) {
	key := NewPrivateKey().Public()
	for name, params := range map[string]map[string]string{
		TypeVXLAN: {"src_ip": "10.0.0.1", "src_port": "4789", "dst_ip": "10.0.0.2", "dst_port": "4789", "vni": "4711", "MTU": "1446", "unknown": "kept"},
		TypeWireGuard: {"src_ip": "fd00::1", "src_port": "51820", "dst_ip": "fd00::2", "dst_port": "51821",
			"src_public_key": key.String(), "dst_public_key": key.String()},
		TypeKernel: {"inodeURL": "inode://4/4026531840", "name": "nsm-1"},
	} {
		m := Mechanism{Type: name, Params: params}
		var got Mechanism
		switch name {
		case TypeVXLAN:
			v, err := m.VXLAN()
			if err != nil {
				t.Fatal(err)
			}
			got = v.With(m)
		case TypeWireGuard:
			w, err := m.WireGuard()
			if err != nil {
				t.Fatal(err)
			}
			got = w.With(m)
		case TypeKernel:
			k, err := m.Kernel()
			if err != nil {
				t.Fatal(err)
			}
			got = k.With(m)
		}
		if diff := cmp.Diff(params, got.Params); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		m   Mechanism
		err error
	}{
		"vni of 25 bits":    {Mechanism{Type: TypeVXLAN, Params: map[string]string{"vni": "16777216"}}, nserr.BadMechanism},
		"negative vni":      {Mechanism{Type: TypeVXLAN, Params: map[string]string{"vni": "-1"}}, nserr.BadMechanism},
		"no address":        {Mechanism{Type: TypeVXLAN, Params: map[string]string{"src_ip": "nowhere"}}, nserr.BadMechanism},
		"unspecified":       {Mechanism{Type: TypeVXLAN, Params: map[string]string{"src_ip": "0.0.0.0"}}, nserr.BadMechanism},
		"multicast":         {Mechanism{Type: TypeVXLAN, Params: map[string]string{"src_ip": "224.0.0.1"}}, nserr.BadMechanism},
		"broadcast":         {Mechanism{Type: TypeVXLAN, Params: map[string]string{"dst_ip": "255.255.255.255"}}, nserr.BadMechanism},
		"mapped broadcast":  {Mechanism{Type: TypeWireGuard, Params: map[string]string{"src_ip": "::ffff:255.255.255.255"}}, nserr.BadMechanism},
		"zone":              {Mechanism{Type: TypeVXLAN, Params: map[string]string{"src_ip": "fe80::1%eth0"}}, nserr.BadMechanism},
		"port":              {Mechanism{Type: TypeVXLAN, Params: map[string]string{"src_ip": "10.0.0.1", "src_port": "65536"}}, nserr.BadMechanism},
		"MTU":               {Mechanism{Type: TypeVXLAN, Params: map[string]string{"MTU": "big"}}, nserr.BadMechanism},
		"short key":         {Mechanism{Type: TypeWireGuard, Params: map[string]string{"src_public_key": "AAAA"}}, nserr.BadMechanism},
		"long name":         {Mechanism{Type: TypeKernel, Params: map[string]string{"name": "0123456789abcdef"}}, nserr.BadName},
		"name with a slash": {Mechanism{Type: TypeKernel, Params: map[string]string{"name": "../x"}}, nserr.BadName},
		"name with space":   {Mechanism{Type: TypeKernel, Params: map[string]string{"name": "a b"}}, nserr.BadName},
		"name dot dot":      {Mechanism{Type: TypeKernel, Params: map[string]string{"name": ".."}}, nserr.BadName},
	} {
		var err error
		switch tt.m.Type {
		case TypeVXLAN:
			_, err = tt.m.VXLAN()
		case TypeWireGuard:
			_, err = tt.m.WireGuard()
		case TypeKernel:
			_, err = tt.m.Kernel()
		}
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: error = %v, want %v", name, err, tt.err)
		}
	}
}

func TestChoose(t *testing.T) {
	kernel, vxlan, memif := Mechanism{Type: TypeKernel}, Mechanism{Type: TypeVXLAN}, Mechanism{Type: "MEMIF"}
	ours := func(m Mechanism) bool { return m.Type != "MEMIF" }
	for _, tt := range []struct {
		name    string
		current Mechanism
		prefs   []Mechanism
		want    string
		err     error
	}{
		{"order of the requester", Mechanism{}, []Mechanism{memif, vxlan, kernel}, TypeVXLAN + " " + TypeKernel, nil},
		{"current type only", kernel, []Mechanism{vxlan}, TypeKernel, nil},
		{"current type, or as it is wished for", kernel, []Mechanism{vxlan, kernel}, TypeKernel + " " + TypeKernel, nil},
		{"current type not ours", memif, []Mechanism{vxlan, kernel}, "", nserr.Unsupported},
		{"nothing offered", Mechanism{}, nil, "", nserr.Unsupported},
		{"nothing fits", Mechanism{}, []Mechanism{memif}, "", nserr.Unsupported},
	} {
		choices, err := Choose(tt.current, tt.prefs, ours)
		var got []string
		for _, m := range choices {
			got = append(got, m.Type)
		}
		if strings.Join(got, " ") != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestInterfaceName(t *testing.T) {
	seen := make(map[string]bool)
	for _, service := range []string{"db", "database", "", "a/b:c d", "ünï", "--x"} {
		for id := range 10_000 {
			name := InterfaceName(service, strconv.Itoa(id))
			if err := CheckInterfaceName(name); err != nil || strings.HasPrefix(name, "-") {
				t.Fatal(name, err)
			}
			if seen[name] {
				t.Fatalf("connection %d of %q has another one's name, %s", id, service, name)
			}
			seen[name] = true
		}
	}
	if got := InterfaceName("database", "id"); got != InterfaceName("database", "id") || !strings.HasPrefix(got, "databa-") {
		t.Errorf("named %q", got)
	}
}

// The table is that of the reference (api/…/mechanisms/vxlan, EvenVNI).
func TestVNIParity(t *testing.T) {
	for _, tt := range []struct {
		src, dst, origSrc, origDst string
		want                       uint32
	}{
		{"172.18.0.1", "172.18.0.2", "", "", 0},
		{"172.18.0.2", "172.18.0.1", "", "", 1},
		{"fd00::1", "fd00::2", "", "", 0},
		{"fd00::2", "fd00::1", "", "", 1},
		{"172.18.0.2", "172.18.0.1", "172.28.0.1", "172.28.0.2", 0},
		{"172.18.0.1", "172.18.0.2", "172.28.0.2", "172.28.0.1", 1},
		{"172.18.0.2", "172.18.0.3", "172.18.0.4", "", 1},
		{"172.18.0.1", "172.18.0.1", "", "", 0},
	} {
		v, err := Mechanism{Type: TypeVXLAN, Params: map[string]string{
			"src_ip": tt.src, "dst_ip": tt.dst, "orig_src_ip": tt.origSrc, "orig_dst_ip": tt.origDst,
		}}.VXLAN()
		if err != nil || v.Parity() != tt.want {
			t.Errorf("%+v: %d, %v", tt, v.Parity(), err)
		}
	}
}

func FuzzTunnel(f *testing.F) {
	f.Add("10.0.0.1", "4789", "7", "AAAA", "1400")
	f.Fuzz(func(t *testing.T, ip, port, vni, key, mtu string) {
		p := map[string]string{"src_ip": ip, "orig_dst_ip": ip, "src_port": port, "vni": vni, "src_public_key": key, "MTU": mtu}
		if v, err := (Mechanism{Type: TypeVXLAN, Params: p}).VXLAN(); err == nil && v.VNI >= 1<<24 {
			t.Error("VNI out of range")
		}
		_, _ = Mechanism{Type: TypeWireGuard, Params: p}.WireGuard()
	})
}

// A name that passes can be a file name below /proc/sys and a word of a command.
func FuzzCheckInterfaceName(f *testing.F) {
	for _, s := range []string{"", "nsm-1", "a-name-of-16-byte", "a/b", "..", "all", "nsm%d", "a b", "ä", "a:1", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckInterfaceName(s) != nil {
			return
		}
		if len(s) > 15 || filepath.Base(s) != s || len(strings.Fields(s)) != 1 || strings.ContainsAny(s, "%:") {
			t.Errorf("%q passed", s)
		}
	})
}
