// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/openvwire/nsm/internal/config"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/nsurl"
)

type common struct {
	LogFormat string `flag:"log-format" env:"NSM_LOG_FORMAT" default:"text" choices:"text,json" help:"form of log lines"`
}

type settings struct {
	common
	Name     string            `flag:"name" short:"n" env:"NSM_NAME" default:"nsc" help:"own name in the path"`
	Enabled  bool              `flag:"enabled" env:"NSM_ENABLED" default:"true" help:"on or off"`
	Port     uint16            `flag:"port" env:"NSM_PORT" default:"4789" help:"UDP port"`
	Depth    int               `flag:"depth" default:"-1" help:"how deep"`
	Ratio    float64           `flag:"ratio" help:"how much"`
	Timeout  time.Duration     `flag:"dial-timeout" env:"NSM_DIAL_TIMEOUT" default:"750ms" help:"limit of one dial"`
	ListenOn []string          `flag:"listen-on" env:"NSM_LISTEN_ON" default:"unix:///a.sock" help:"URLs to listen on"`
	Labels   map[string]string `flag:"labels" env:"NSM_LABELS" default:"p2p:true" help:"own labels"`
	Excluded []netip.Prefix    `flag:"excluded" env:"NSM_EXCLUDED_PREFIXES" help:"prefixes not to use"`
	Tunnel   netip.Addr        `flag:"tunnel-ip" env:"NSM_TUNNEL_IP" help:"underlay address"`
	Services []nsurl.URL       `flag:"network-services" env:"NSM_NETWORK_SERVICES" help:"services to request"`

	Ignored int // no tag: not a setting
}

// load runs the whole way: defaults, file, environment, flags.
func load(t *testing.T, file string, env map[string]string, args ...string) (settings, error) {
	t.Helper()
	var cfg settings
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	s := config.Declare(flags, &cfg)
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "nsm.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	return cfg, config.Load(path, lookup, s)
}

func defaults() settings {
	return settings{
		common:   common{LogFormat: "text"},
		Name:     "nsc",
		Enabled:  true,
		Port:     4789,
		Depth:    -1,
		Timeout:  750 * time.Millisecond,
		ListenOn: []string{"unix:///a.sock"},
		Labels:   map[string]string{"p2p": "true"},
	}
}

func TestLoad(t *testing.T) {
	type env = map[string]string
	for _, tt := range []struct {
		name string
		file string
		env  env
		args []string
		want func(*settings)
	}{
		{name: "defaults", want: func(*settings) {}},
		{
			name: "flag over environment over file",
			file: "name: file\nport: 1\ndepth: 3\nratio: 0.5\nlog-format: json\n",
			env:  env{"NSM_NAME": "environment", "NSM_PORT": "2"},
			args: []string{"-n", "flag"},
			want: func(s *settings) { s.Name, s.Port, s.Depth, s.Ratio, s.LogFormat = "flag", 2, 3, 0.5, "json" },
		},
		{
			name: "a flag given with its default still wins",
			env:  env{"NSM_NAME": "environment"},
			args: []string{"--name=nsc"},
			want: func(*settings) {},
		},
		{
			name: "booleans",
			env:  env{"NSM_ENABLED": "false"},
			args: []string{"--enabled"},
			want: func(*settings) {},
		},
		{
			name: "lists and maps as the reference writes them",
			env: env{
				"NSM_LISTEN_ON": "unix:///b.sock, tcp://:5001", "NSM_LABELS": "app:db,url=tcp://x:1",
				"NSM_EXCLUDED_PREFIXES": "10.0.0.0/8,fd00::/8", "NSM_TUNNEL_IP": "::1",
				"NSM_NETWORK_SERVICES": "kernel://a/nsm-1,kernel://b",
			},
			want: func(s *settings) {
				s.ListenOn = []string{"unix:///b.sock", "tcp://:5001"}
				s.Labels = map[string]string{"app": "db", "url": "tcp://x:1"}
				s.Excluded = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
				s.Tunnel = netip.IPv6Loopback()
				s.Services = []nsurl.URL{{Mechanism: "KERNEL", Service: "a", Interface: "nsm-1"}, {Mechanism: "KERNEL", Service: "b"}}
			},
		},
		{
			name: "repeated flags add up, after the first has replaced the default",
			args: []string{"--listen-on=a", "--listen-on", "b,c", "--labels=x=1,y=1", "--labels=y=2"},
			want: func(s *settings) {
				s.ListenOn = []string{"a", "b", "c"}
				s.Labels = map[string]string{"x": "1", "y": "2"}
			},
		},
		{
			name: "an empty list is a value",
			env:  env{"NSM_LISTEN_ON": "", "NSM_LABELS": "", "NSM_NAME": ""},
			want: func(s *settings) { s.Name, s.ListenOn, s.Labels = "", []string{}, map[string]string{} },
		},
		{
			name: "lists and maps of a file",
			file: "# comment\nlisten-on: [a, b]\nlabels:\n  app: db\nexcluded: 10.0.0.0/8\nname:\n",
			want: func(s *settings) {
				s.Name, s.ListenOn, s.Labels = "", []string{"a", "b"}, map[string]string{"app": "db"}
				s.Excluded = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			},
		},
		{name: "an empty file", file: "# nothing\n", want: func(*settings) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := defaults()
			tt.want(&want)
			if got, err := load(t, tt.file, tt.env, tt.args...); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
}

func TestErrorsNameSettingAndSource(t *testing.T) {
	for _, tt := range []struct {
		file string
		env  map[string]string
		args []string
		want []string
	}{
		{args: []string{"--dial-timeout=soon"}, want: []string{`--dial-timeout="soon"`, "a duration like"}},
		{args: []string{"--labels=x"}, want: []string{"--labels", "key=value"}},
		{args: []string{"--log-format=xml"}, want: []string{`"xml" is none of text, json`}},
		{args: []string{"--network-services=kernel://a,nonsense"}, want: []string{`"nonsense": service URL`, "mechanism"}},
		{env: map[string]string{"NSM_PORT": "70000"}, want: []string{`environment NSM_PORT="70000"`, "from 0 to 65535"}},
		{env: map[string]string{"NSM_ENABLED": "yes please"}, want: []string{"NSM_ENABLED", "true or false"}},
		{env: map[string]string{"NSM_EXCLUDED_PREFIXES": "10.0.0.0/8,10"}, want: []string{"NSM_EXCLUDED_PREFIXES", `"10":`}},
		{file: "name: a\nlisten_on: b\n", want: []string{"nsm.yaml, line 2", `"listen_on" is not known; do you mean "listen-on"?`}},
		{file: "colour: red\n", want: []string{`"colour" is not known`}},
		{file: "depth: deep\n", want: []string{"line 1: depth: want a whole number"}},
		{file: "depth: [1]\n", want: []string{"depth: want a number"}},
		{file: "listen-on: [[a]]\n", want: []string{"listen-on: want a list of plain values"}},
		{file: "labels: {a: [b]}\n", want: []string{"labels: want plain values"}},
		{file: "name: a\nname: b\n", want: []string{"line 2", "twice"}},
		{file: "- name\n", want: []string{"line 1: want key: value"}},
		{file: "\tname: a", want: []string{"nsm.yaml"}},
	} {
		_, err := load(t, tt.file, tt.env, tt.args...)
		if !errors.Is(err, nserr.BadFlag) {
			t.Errorf("%v: error %v, want %s", tt, err, nserr.BadFlag.Code)
			continue
		}
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %v does not say %s", err, part)
			}
		}
	}
	if err := config.Load("/does/not/exist", os.LookupEnv); !errors.Is(err, nserr.BadFlag) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// Two structs, as of the program and of a command, share one file.
func TestSeveralSettings(t *testing.T) {
	var a struct {
		Name string `flag:"name"`
	}
	var b struct {
		Port int `flag:"port"`
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	sa, sb := config.Declare(flags, &a), config.Declare(flags, &b)
	path := filepath.Join(t.TempDir(), "nsm.yaml")
	if err := os.WriteFile(path, []byte("name: x\nport: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := func(string) (string, bool) { return "", false }
	if err := config.Load(path, none, sa, sb); err != nil || a.Name != "x" || b.Port != 7 {
		t.Errorf("got %q, %d, %v", a.Name, b.Port, err)
	}
}

func TestHelp(t *testing.T) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Declare(flags, &settings{})
	help := flags.FlagUsages()
	for _, line := range []string{
		`-n, --name string`, `own name in the path [$NSM_NAME] (default "nsc")`,
		`--enabled `, `on or off [$NSM_ENABLED] (default true)`,
		`--dial-timeout duration`, `(default 750ms)`,
		`--listen-on string,...`, `--labels key=value,...`, `own labels [$NSM_LABELS] (default p2p:true)`,
		`form of log lines (text, json) [$NSM_LOG_FORMAT] (default "text")`,
		`--excluded prefix,...`, `--tunnel-ip addr`, `--network-services url,...`,
	} {
		if !strings.Contains(help, line) {
			t.Errorf("help lacks %q:\n%s", line, help)
		}
	}
}

func TestDeclareRefusesDefects(t *testing.T) {
	for name, into := range map[string]any{
		"type": &struct {
			C chan int `flag:"c"`
		}{},
		"default": &struct {
			N int `flag:"n" default:"one"`
		}{},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("Declare did not panic")
				}
			}()
			config.Declare(pflag.NewFlagSet("test", pflag.ContinueOnError), into)
		})
	}
}

func FuzzLoadFile(f *testing.F) {
	for _, s := range []string{"name: a\n", "labels: {a: b}\n", "listen-on: [a, b]\n", "a: &x 1\nb: *x\n", "- 1", "name: *y", "---\n---\n", "? [a]\n: b\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file string) {
		if _, err := load(t, file, nil); err != nil && !errors.Is(err, nserr.BadFlag) {
			t.Errorf("%q: %v", file, err)
		}
	})
}

func TestCheckEnvironment(t *testing.T) {
	known := []string{"NSM_NAME", "NSM_CONNECT_TO", "NODE_NAME"}
	got := config.CheckEnvironment([]string{
		"NSM_NAME=a", "NSM_CONECT_TO=unix:///x", "NSM_REGISTRY_PORT=tcp://10.0.0.1:80", "NODE_NAME=a", "NSM_NAMES", "PATH=/bin", "HOSTNAME=x", "",
	}, known)
	var texts []string
	for _, err := range got {
		texts = append(texts, err.Error())
	}
	want := []string{`"NSM_CONECT_TO" is not known; do you mean "NSM_CONNECT_TO"?`, `"NSM_NAMES" is not known; do you mean "NSM_NAME"?`}
	if !slices.Equal(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
}

// What is nothing like a known name costs nothing to tell, and what several commands know
// is compared once: each comparison allocates.
func TestCheckEnvironmentComparesLittle(t *testing.T) {
	environ := []string{"NSM_NAMF=a"}
	var known []string
	for range 50 {
		environ = append(environ, "SOMETHING_OF_SOMEBODY_ELSE=a")
		known = append(known, "NSM_NAME", "NSM_CONNECT_TO")
	}
	n := testing.AllocsPerRun(1, func() { config.CheckEnvironment(environ, known) })
	if n > 50 {
		t.Errorf("%v allocations for one name that is like another", n)
	}
}
