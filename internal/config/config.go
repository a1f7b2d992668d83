// SPDX-License-Identifier: Apache-2.0

// Package config fills a command's configuration, one documented struct, from
// flags, environment and an optional YAML file, in that order of precedence,
// and from the defaults in the struct's tags:
//
//	type Config struct {
//		Name     string        `flag:"name" env:"NSM_NAME" default:"nsc" help:"own name in the path"`
//		Timeout  time.Duration `flag:"request-timeout" env:"NSM_REQUEST_TIMEOUT" default:"15s" help:"limit of one request"`
//		Labels   map[string]string `flag:"labels" env:"NSM_LABELS" help:"labels of the connection"`
//	}
//
//	var cfg Config
//	settings := config.Declare(cmd.Flags(), &cfg) // flags and defaults
//	…                                             // cobra parses the command line
//	err := config.Load("nsm.yaml", os.LookupEnv, settings)
//
// Further tags: short (one-letter flag), choices (allowed values, separated by
// commas). A file has the flags' names as keys.
//
// Embedded structs are part of the struct. Fields may be strings, booleans,
// numbers, durations, anything with UnmarshalText, and lists and string maps of
// these. As text, a list is a,b,c and a map k:v,k:v or k=v,k=v.
package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Settings is the fields of one struct together with their names.
type Settings struct {
	flags *pflag.FlagSet
	list  []*setting
}

// setting is one field. It is the pflag.Value of its flag.
type setting struct {
	flag, env string
	choices   []string // nil = any
	field     reflect.Value
	text      string // of the last assignment, for --help
	given     bool   // the flag stands on the command line
}

// Declare sets the fields of the struct that into points to to their defaults
// and declares their flags. A struct that it does not understand is a defect of
// the program: it panics.
func Declare(flags *pflag.FlagSet, into any) *Settings {
	s := &Settings{flags: flags}
	s.declare(reflect.ValueOf(into).Elem())
	return s
}

func (s *Settings) declare(v reflect.Value) {
	for i := range v.NumField() {
		f, field := v.Type().Field(i), v.Field(i)
		if f.Anonymous {
			s.declare(field)
			continue
		}
		name, ok := f.Tag.Lookup("flag")
		if !ok {
			continue
		}
		set := &setting{flag: name, env: f.Tag.Get("env"), field: field}
		if c := f.Tag.Get("choices"); c != "" {
			set.choices = strings.Split(c, ",")
		}
		if text, ok := f.Tag.Lookup("default"); ok {
			if err := set.assign(text); err != nil {
				panic(fmt.Sprintf("config: default of %s: %v", f.Name, err))
			}
		} else if _, err := parse(field.Type(), ""); errors.Is(err, errUnsupported) {
			panic(fmt.Sprintf("config: %s: %v", f.Name, err))
		}
		s.list = append(s.list, set)

		usage := f.Tag.Get("help")
		if set.choices != nil {
			usage += " (" + strings.Join(set.choices, ", ") + ")"
		}
		if set.env != "" {
			usage += " [$" + set.env + "]"
		}
		flag := s.flags.VarPF(set, name, f.Tag.Get("short"), usage)
		if field.Kind() == reflect.Bool {
			flag.NoOptDefVal = "true"
		}
	}
}

// Environment returns the variables from which the settings may come.
func (s *Settings) Environment() (names []string) {
	for _, set := range s.list {
		if set.env != "" {
			names = append(names, set.env)
		}
	}
	return names
}

// Load assigns what the flags have left open: from the environment, else from
// the YAML file, if path is not empty. Every key of the file must belong to one
// of the settings. Errors are [nserr.BadFlag] and name the setting and where
// its value stands; then some fields may have been assigned already.
func Load(path string, env func(string) (string, bool), all ...*Settings) error {
	var known []string
	for _, s := range all {
		for _, set := range s.list {
			known = append(known, set.flag)
		}
	}
	file, err := readFile(path, known)
	if err != nil {
		return err
	}
	for _, s := range all {
		for _, set := range s.list {
			if set.given {
				continue
			}
			if text, ok := env(set.env); ok && set.env != "" {
				if err := set.assign(text); err != nil {
					return nserr.BadFlag.Errorf("environment %s=%q: %v", set.env, text, err)
				}
			} else if entry, ok := file[set.flag]; ok {
				if err := set.assignNode(entry); err != nil {
					return nserr.BadFlag.Errorf("file %s, line %d: %s: %v", path, entry.Line, set.flag, err)
				}
			}
		}
	}
	return nil
}

// assign replaces the value of the field.
func (s *setting) assign(text string) error {
	v, err := parse(s.field.Type(), text)
	if err == nil {
		err = s.checkChoice(v)
	}
	if err != nil {
		return err
	}
	s.field.Set(v)
	s.text = text
	return nil
}

func (s *setting) checkChoice(v reflect.Value) error {
	if text := fmt.Sprint(v); s.choices != nil && !slices.Contains(s.choices, text) {
		return fmt.Errorf("%q is none of %s", text, strings.Join(s.choices, ", "))
	}
	return nil
}

// Set implements pflag.Value. A list or map that is given more than once grows.
func (s *setting) Set(text string) error {
	v, err := parse(s.field.Type(), text)
	if err == nil {
		err = s.checkChoice(v)
	}
	if err != nil {
		return nserr.BadFlag.Errorf("--%s=%q: %v", s.flag, text, err)
	}
	switch before := s.field; {
	case s.given && isList(v.Type()):
		v = reflect.AppendSlice(before, v)
	case s.given && v.Kind() == reflect.Map:
		for key, value := range before.Seq2() {
			if !v.MapIndex(key).IsValid() {
				v.SetMapIndex(key, value)
			}
		}
	}
	s.field.Set(v)
	s.given = true
	return nil
}

// String implements pflag.Value; pflag asks before the command line is parsed,
// for the default.
func (s *setting) String() string { return s.text }

// Type implements pflag.Value: the placeholder in --help.
func (s *setting) Type() string { return typeName(s.field.Type()) }

// isList reports whether a type is a list to this package: a slice that does
// not have a text form of its own.
func isList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}
